#include "fusedbun/launcher/data/data_summary.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::data {
namespace {

using launcher::shown;
using nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;

std::string of(int64_t count, const char* what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

void add_left_out(Rows& rows, const std::vector<LeftOut>& left_out) {
  for (const LeftOut& kind : left_out)
    rows.push_back({&kind == left_out.data() ? "left out" : "", text_of(kind)});
}

Rows rows_of(const TokensSeen& seen, int64_t context) {
  Rows rows = {
      {"layout", seen.layout + ", " + std::to_string(8 * seen.token_bytes) + " bits a token"}};
  if (!seen.tokenizer.empty()) rows.push_back({"tokenizer", seen.tokenizer});
  rows.push_back({"tokens", std::to_string(seen.tokens)});
  rows.push_back(
      {"carry loss", seen.loss_tokens == seen.tokens ? "all" : std::to_string(seen.loss_tokens)});
  if (seen.lengths) {
    const Lengths& lengths = *seen.lengths;
    rows.push_back({"documents", std::to_string(lengths.documents)});
    rows.push_back({"lengths", "shortest " + std::to_string(lengths.shortest) + ", median " +
                                   std::to_string(lengths.median) + ", longest " +
                                   std::to_string(lengths.longest)});
    if (context > 0)
      rows.push_back({"context", of(lengths.longer_than_context, "document") + " longer than " +
                                     of(context, "token")});
  } else {
    rows.push_back({"documents",
                    "not known: there is no index, and --tokenizer names no token that ends them"});
  }
  add_left_out(rows, seen.left_out);
  return rows;
}

/// Line breaks stay, what could steer a terminal does not.
std::string shown_lines(const std::string& text) {
  std::string lines;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines += shown(text.substr(at, end - at)) + (end < text.size() ? "\n" : "");
    at = end + 1;
  }
  return lines;
}

std::string text_of(const std::vector<Excerpt>& document) {
  const bool has_marks = !std::ranges::all_of(document, &Excerpt::carries_loss);
  std::string text = has_marks ? "\nThe first document begins so, [[what carries loss]] marked:\n\n"
                               : "\nThe first document begins so:\n\n";
  for (const Excerpt& part : document) {
    const std::string lines = shown_lines(part.text);
    text += has_marks && part.carries_loss ? "[[" + lines + "]]" : lines;
  }
  return text + "\n";
}

ordered_json json_of(const TokensSeen& seen, int64_t context) {
  ordered_json json{{"layout", seen.layout},
                    {"token_bytes", seen.token_bytes},
                    {"tokens", seen.tokens},
                    {"loss_tokens", seen.loss_tokens}};
  if (!seen.tokenizer.empty()) json["tokenizer"] = seen.tokenizer;
  if (seen.lengths) {
    json["documents"] = seen.lengths->documents;
    json["shortest"] = seen.lengths->shortest;
    json["median"] = seen.lengths->median;
    json["longest"] = seen.lengths->longest;
    if (context > 0) json["longer_than_context"] = seen.lengths->longer_than_context;
  }
  json["left_out"] = seen.left_out;
  for (const Excerpt& part : seen.first_document)
    json["first_document"].push_back({{"text", part.text}, {"carries_loss", part.carries_loss}});
  return json;
}

}  // namespace

Lengths lengths_of(std::span<const uint64_t> begins, int64_t context,
                   const std::filesystem::path& path) {
  FUSEDBUN_ASSERT(begins.size() > 1, "a file has a document");
  std::vector<int64_t> lengths(begins.size() - 1);
  for (size_t i = 0; i < lengths.size(); ++i) {
    FUSEDBUN_REQUIRE(begins[i] <= begins[i + 1], DataError,
                     DocumentIndex::beside(path).string() +
                         " is damaged (a document begins before the one in front of it)");
    lengths[i] = static_cast<int64_t>(begins[i + 1] - begins[i]);
  }
  const auto middle = lengths.begin() + (std::ssize(lengths) - 1) / 2;
  std::ranges::nth_element(lengths, middle);
  const auto [shortest, longest] = std::ranges::minmax(lengths);
  return {.documents = std::ssize(lengths),
          .shortest = shortest,
          .median = *middle,
          .longest = longest,
          .longer_than_context =
              std::ranges::count_if(lengths, [&](int64_t n) { return n > context; })};
}

int64_t loss_tokens_of(std::span<const TokenSpan> spans, int64_t tokens) {
  if (spans.empty()) return tokens;
  int64_t sum = 0;
  for (const TokenSpan& span : spans) sum += static_cast<int64_t>(span.end - span.begin);
  return sum;
}

std::string text_of(const FileSeen& seen, int64_t context) {
  Rows rows;
  if (seen.tokens) {
    rows = rows_of(*seen.tokens, context);
  } else {
    for (const auto& [kind, count] : seen.text.kinds)
      rows.push_back({rows.empty() ? "documents" : "", std::to_string(count) + " of " + kind});
    if (rows.empty()) rows.push_back({"documents", "0"});
    rows.push_back({"bytes", std::to_string(seen.text.bytes)});
    add_left_out(rows, seen.text.left_out);
  }
  std::string text = shown(seen.path) + "\n";
  for (const std::string& line : launcher::aligned(rows)) text += "  " + line + "\n";
  if (seen.tokens && !seen.tokens->first_document.empty())
    text += text_of(seen.tokens->first_document);
  return text;
}

std::string json_of(const std::vector<FileSeen>& list, int64_t context) {
  ordered_json files = ordered_json::array();
  for (const FileSeen& seen : list) {
    ordered_json file{{"path", seen.path}};
    if (seen.tokens) {
      file.update(json_of(*seen.tokens, context));
    } else {
      file["documents"] = seen.text.kinds;
      file["bytes"] = seen.text.bytes;
      file["left_out"] = seen.text.left_out;
    }
    files.push_back(file);
  }
  return ordered_json{{"files", files}}.dump(2, ' ', false,
                                             ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace fusedbun::data

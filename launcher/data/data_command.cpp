#include "fusedbun/launcher/data/data_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/data/data_summary.h"
#include "fusedbun/launcher/data/python_program.h"
#include "fusedbun/launcher/data/tokenization.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;
using data::FileSeen;
using data::PythonProgram;
using nlohmann::ordered_json;

constexpr int64_t kExcerptTokens = 512;
constexpr int64_t kShortVocab = 65536;  // tokens of 16 bits

/// What a person sees meanwhile: on a terminal one line that is rewritten each second, else a line each ten.
class TokenizeProgress {
 public:
  using Clock = std::chrono::steady_clock;

  void operator()(const data::TokenizeCounts& counts) {
    const auto now = Clock::now();
    if (now - last_ < (is_terminal_ ? std::chrono::seconds(1) : std::chrono::seconds(10))) return;
    last_ = now;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    char line[128];
    std::snprintf(line, sizeof line, "%lld documents, %lld tokens, %.1f MB/s",
                  static_cast<long long>(counts.documents), static_cast<long long>(counts.tokens),
                  static_cast<double>(counts.bytes) / 1e6 / seconds);
    run_folder::write_to_standard_error(is_terminal_ ? "\r\x1b[K" + std::string(line)
                                                     : std::string(line) + "\n");
    is_open_ = is_terminal_;
  }
  ~TokenizeProgress() {
    if (is_open_) run_folder::write_to_standard_error("\r\x1b[K");
  }

 private:
  const bool is_terminal_ = ::isatty(STDERR_FILENO) == 1;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
  bool is_open_ = false;
};

void run_tokenize(const data::TokenizeOptions& options) {
  data::TokenizeReport report;
  {
    TokenizeProgress progress;
    report = data::tokenize(options, std::ref(progress));
  }
  const data::TokenizeCounts& counts = report.counts;
  std::cout << shown(options.out.string()) << ": " << counts.documents << " documents, "
            << counts.tokens << " tokens, "
            << (counts.loss_tokens == counts.tokens ? "all" : std::to_string(counts.loss_tokens))
            << " of them carry loss\n";
  for (const data::LeftOut& kind : report.left_out)
    std::cout << "left out: " << shown(text_of(kind)) << "\n";
}

void add_tokenize(CLI::App& group) {
  CLI::App* const command = group.add_subcommand(
      "tokenize", "Write text or JSON lines as a file of tokens, which `train --data` reads");
  command->footer(
      "Examples:\n"
      "  fusedbun data tokenize texts/ --tokenizer Qwen3-0.6B/ --out texts.bin\n"
      "  fusedbun data tokenize chats.jsonl.gz --tokenizer Qwen3-0.6B/ --out chats.bin\n"
      "  fusedbun data tokenize stories.txt --separator '<|endoftext|>' --tokenizer gpt2/ --out "
      "stories.bin\n"
      "  xzcat corpus.jsonl.xz | fusedbun data tokenize - --format jsonl --tokenizer gpt2/ --out "
      "corpus.bin\n"
      "\n"
      "A line of a .jsonl is a document, by its keys:\n"
      "  {\"text\": \"...\"}                              all of it carries loss\n"
      "  {\"prompt\": \"...\", \"completion\": \"...\"}       the completion carries loss\n"
      "  {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, ...]}\n"
      "                                               a chat, written by the tokenizer's template; "
      "what the assistant says carries loss\n"
      "Other files are text: a file is a document. Texts and completions get the end-of-sequence "
      "token.\n"
      "Beside NAME.bin, which has llm.c's layout: NAME.bin.documents (where documents begin, what "
      "carries loss)\n"
      "and NAME.bin.json (what was read, and what was left out).\n");
  auto options = std::make_shared<data::TokenizeOptions>();
  command
      ->add_option(
          "inputs", options->inputs,
          "Files, folders or pipes, plain or compressed by gzip or zstd; -: standard input")
      ->type_name("")
      ->default_str("")
      ->required();
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "Folder with tokenizer.json, or that file; bytes: tokens are bytes, for models "
                   "of 256 ids")
      ->type_name("FOLDER|FILE|bytes")
      ->required();
  command->add_option("--out", options->out, "File of tokens to write")
      ->type_name("NAME.bin")
      ->required();
  command
      ->add_option("--loss", options->loss,
                   "Which tokens of prompts with completions and of chats carry loss")
      ->check(CLI::IsMember({"completion", "all"}));
  command
      ->add_option("--format", options->format,
                   "auto: .jsonl, .ndjson and .json are JSON lines, other files text")
      ->check(CLI::IsMember({"auto", "text", "jsonl"}));
  command
      ->add_option(
          "--separator", options->separator,
          "What parts the documents in text, such as '\\n\\n'; without it a file is a document")
      ->type_name("TEXT");
  command->add_flag("--no-eos", options->no_eos, "Documents end without the end-of-sequence token");
  command->add_flag("--overwrite", options->overwrite, "Replace --out if it is there already");
  command->callback([options] { run_tokenize(*options); });
}

/// Adds what the report beside a file of tokens says, if there is one.
void add_report(data::TokensSeen& seen, const fs::path& token_file) {
  const fs::path path = data::report_beside(token_file);
  std::ifstream in(path);
  if (!in) return;
  try {
    const ordered_json report = ordered_json::parse(in);
    seen.tokenizer = report.at("tokenizer");
    seen.left_out = report.at("left_out");
  } catch (const nlohmann::json::exception&) {
    throw DataError(path.string() + " is no report of fusedbun data tokenize: move it away");
  }
}

/// A tokenizer that decodes, in Python.
class Decoder {
 public:
  explicit Decoder(const std::string& tokenizer)
      : python_({"excerpts", tokenizer}), about_(ordered_json::parse(python_.receive().value())) {}

  int64_t vocab() const { return about_.at("vocabulary_size"); }
  std::optional<int64_t> eos() const {
    const auto id = about_.find("eos_token_id");
    return id == about_.end() || id->is_null() ? std::nullopt : std::optional(id->get<int64_t>());
  }
  std::vector<data::Excerpt> decode(const std::vector<uint32_t>& tokens,
                                    const std::vector<data::TokenSpan>& spans) {
    ordered_json request{{"tokens", tokens}, {"spans", ordered_json::array()}};
    for (const data::TokenSpan& span : spans) request["spans"].push_back({span.begin, span.end});
    python_.send(request.dump());
    std::vector<data::Excerpt> parts;
    for (const auto& part : ordered_json::parse(python_.receive().value()))
      parts.push_back({part.at(0), part.at(1)});
    return parts;
  }

 private:
  PythonProgram python_;
  ordered_json about_;
};

/// The index of a file, as it lies beside it or as the tokenizer's end-of-sequence token parts it; nothing without both.
std::optional<data::DocumentIndex> index_of(const data::TokenFile& file, Decoder* decoder) {
  auto index = data::DocumentIndex::open(data::DocumentIndex::beside(file.path()), file, {});
  FUSEDBUN_REQUIRE(index || !file.layout().has_index, DataError,
                   data::DocumentIndex::beside(file.path()).string() +
                       " is missing: " + file.path().string() + " was written with it");
  const auto eos = decoder == nullptr ? std::nullopt : decoder->eos();
  if (!index && eos) return data::find_documents(file, *eos);
  return index;
}

std::vector<data::Excerpt> first_document(const data::TokenFile& file,
                                          const data::DocumentIndex* index, Decoder& decoder) {
  const auto end = static_cast<uint64_t>(std::min<int64_t>(
      index == nullptr ? file.tokens() : static_cast<int64_t>(index->begins()[1]), kExcerptTokens));
  std::vector<uint32_t> tokens(end);
  file.read(0, tokens);
  std::vector<data::TokenSpan> spans;
  if (index == nullptr || index->spans().empty()) {
    spans.push_back({0, end});
  } else {
    for (const data::TokenSpan& span : index->spans()) {
      if (span.begin >= end) break;
      spans.push_back({span.begin, std::min(span.end, end)});
    }
  }
  return decoder.decode(tokens, spans);
}

data::TokensSeen seen_in(const fs::path& path, Decoder* decoder, int64_t context) {
  const data::TokenFile file(path, decoder == nullptr ? kShortVocab : decoder->vocab());
  const auto index = index_of(file, decoder);
  data::TokensSeen seen{
      .layout = file.layout().header_bytes > 0 ? "llm.c's"
                : decoder == nullptr           ? "nanoGPT's (--tokenizer tells 16 from 32 bits)"
                                               : "nanoGPT's",
      .token_bytes = file.layout().token_bytes,
      .tokens = file.tokens(),
      .loss_tokens = index ? loss_tokens_of(index->spans(), file.tokens()) : file.tokens()};
  if (index) seen.lengths = data::lengths_of(index->begins(), context, path);
  add_report(seen, path);
  if (decoder != nullptr)
    seen.first_document = first_document(file, index ? &*index : nullptr, *decoder);
  return seen;
}

data::TextSeen text_seen_in(const std::string& path) {
  PythonProgram python({"look", "auto", "", path});
  const auto found = ordered_json::parse(python.receive().value());
  python.finish();
  return {.kinds = found.at("kinds"), .bytes = found.at("bytes"), .left_out = found.at("left_out")};
}

struct ShowOptions {
  std::vector<std::string> files;
  std::string tokenizer;
  int64_t context = 0;
};

void run_show(const ShowOptions& options, OutputFormat format) {
  std::optional<Decoder> decoder;
  if (!options.tokenizer.empty()) decoder.emplace(options.tokenizer);
  std::vector<FileSeen> list;
  for (const std::string& path : options.files) {
    FileSeen seen{.path = path, .tokens = {}, .text = {}};
    if (data::is_token_file(path)) {
      seen.tokens = seen_in(path, decoder ? &*decoder : nullptr, options.context);
    } else {
      seen.text = text_seen_in(path);
    }
    list.push_back(std::move(seen));
  }
  if (format == OutputFormat::json) {
    std::cout << json_of(list, options.context);
    return;
  }
  for (const FileSeen& seen : list)
    std::cout << (&seen == list.data() ? "" : "\n") << text_of(seen, options.context);
}

void add_show(CLI::App& group) {
  CLI::App* const command =
      group.add_subcommand("show", "What is in files of tokens, text or JSON lines");
  command->footer(
      "Examples:\n"
      "  fusedbun data show chats.bin --tokenizer Qwen3-0.6B/    # the first document, what "
      "carries loss marked\n"
      "  fusedbun data show *.bin --context 1024                 # and how many documents are "
      "longer\n"
      "  fusedbun data show chats.jsonl.gz\n");
  auto options = std::make_shared<ShowOptions>();
  command->add_option("files", options->files, "Files of tokens (.bin), of text or of JSON lines")
      ->type_name("")
      ->default_str("")
      ->required();
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "Decodes the first document of files of tokens")
      ->type_name("FOLDER|FILE|bytes");
  command
      ->add_option("--context", options->context,
                   "Count the documents that are longer than so many tokens")
      ->type_name("TOKENS")
      ->check(CLI::PositiveNumber)
      ->default_str("");
  const auto format = add_output_flag(*command);
  command->callback([options, format] { run_show(*options, *format); });
}

}  // namespace

CLI::App* add_data_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("data", "Make files of tokens, and look at what is in them");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  fusedbun data tokenize chats.jsonl --tokenizer Qwen3-0.6B/ --out chats.bin\n"
      "  fusedbun data show chats.bin --tokenizer Qwen3-0.6B/ --context 1024\n");
  add_tokenize(*command);
  add_show(*command);
  return command;
}

}  // namespace fusedbun::launcher

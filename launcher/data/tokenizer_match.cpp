#include "fusedbun/launcher/data/tokenizer_match.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cinttypes>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"
#include "fusedbun/launcher/data/tokenization.h"

namespace fusedbun::data {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> text_at(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  try {
    return run_folder::read_text_file(path);
  } catch (const DataError&) {  // who needs it says why it cannot be read
    return std::nullopt;
  }
}

std::string text_of(const nlohmann::json& report, const char* field) {
  const auto found = report.find(field);
  return found != report.end() && found->is_string() ? found->get<std::string>() : "";
}

}  // namespace

std::optional<std::string> tokenizer_digest(const fs::path& given) {
  std::error_code error;
  const fs::path path = fs::is_directory(given, error) ? given / "tokenizer.json" : given;
  const std::optional<std::string> text = text_at(path);
  if (!text) return std::nullopt;
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016" PRIx64,
                static_cast<uint64_t>(XXH3_64bits(text->data(), text->size())));
  return digits;
}

std::vector<std::string> other_tokenizers(const std::vector<fs::path>& token_files,
                                          const fs::path& model_folder) {
  const std::optional<std::string> own = tokenizer_digest(model_folder);
  std::vector<std::string> sentences;
  if (!own) return sentences;
  for (const fs::path& file : token_files) {
    const std::optional<std::string> text = text_at(report_beside(file));
    if (!text) continue;
    const auto report = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!report.is_object()) continue;
    const std::string digest = text_of(report, kTokenizerDigestField);
    if (digest.empty() || digest == *own) continue;
    sentences.push_back(file.string() + " was made with another tokenizer (" +
                        text_of(report, "tokenizer") + ") than " +
                        (model_folder / "tokenizer.json").string() +
                        ": unless both give the same ids, the model learns noise; make it anew "
                        "with fusedbun data tokenize --tokenizer " +
                        model_folder.string());
  }
  return sentences;
}

}  // namespace fusedbun::data

#include "fusedbun/launcher/train/model_folder.h"

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;

/// As transformers writes them; a tokenizer has some of these.
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "added_tokens.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "tokenizer.model",
                                           "chat_template.jinja",
                                           "generation_config.json"};

void write_whole(const fs::path& path, const std::string& text) {
  run_folder::AtomicFile file(path);
  file.write(text);
  file.commit();
}

}  // namespace

std::vector<std::string> complete_model_folder(const fs::path& folder, const InitialModel& initial,
                                               std::string_view dtype) {
  std::vector<std::string> problems;
  const auto try_to = [&](const fs::path& path, const std::function<std::string()>& text) {
    try {
      write_whole(path, text());
    } catch (const Error& error) {
      problems.push_back(std::string(error.what()) + "; the weights themselves are saved");
    }
  };
  try_to(folder / model::kConfigName, [&] { return config_json(initial, dtype); });
  if (initial.folder.empty()) return problems;
  for (const char* name : kTokenizerFiles) {
    const fs::path from = initial.folder / name;
    std::error_code error;
    if (!fs::exists(from, error) || fs::equivalent(from, folder / name, error)) continue;
    try_to(folder / name, [&] { return run_folder::read_text_file(from); });
  }
  return problems;
}

}  // namespace fusedbun::train

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

}  // namespace

int64_t Companions::bytes() const {
  int64_t sum = 0;
  for (const auto& [name, content] : files) sum += std::ssize(content);
  return sum;
}

Companions read_companions(const InitialModel& initial, std::string_view dtype) {
  Companions companions;
  companions.files[model::kConfigName] = config_json(initial, dtype);
  if (initial.folder.empty()) return companions;
  for (const char* name : kTokenizerFiles) {
    const fs::path from = initial.folder / name;
    std::error_code error;
    if (!fs::exists(from, error)) continue;
    try {
      companions.files[name] = run_folder::read_text_file(from);
    } catch (const Error& unreadable) {
      companions.problems.push_back(std::string(unreadable.what()) +
                                    "; the model is left without it");
    }
  }
  return companions;
}

std::vector<std::string> write_companions(const fs::path& folder, const Companions& companions) {
  std::vector<std::string> problems;
  for (const auto& [name, content] : companions.files) {
    try {
      run_folder::AtomicFile file(folder / name);
      file.write(content);
      file.commit();
    } catch (const IoError& error) {
      problems.push_back(std::string(error.what()) + "; the weights themselves are saved");
    }
  }
  return problems;
}

}  // namespace fusedbun::train

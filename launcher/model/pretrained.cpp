#include "fusedbun/launcher/model/pretrained.h"

#include <nlohmann/json.hpp>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"
#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/hf_weights.h"
#include "fusedbun/launcher/model/llama.h"

namespace fusedbun::model {

namespace fs = std::filesystem;

fs::path model_at(const fs::path& given) {
  std::error_code error;
  if (!fs::is_directory(given, error)) return given;
  for (const char* name : {kWeightsName, kIndexName}) {
    if (fs::exists(given / name, error)) return given / name;
  }
  throw DataError(given.string() + " is a folder without a " + kWeightsName);
}

std::optional<fs::path> config_beside(const fs::path& weights) {
  std::error_code error;
  for (const fs::path& file : {weights, fs::canonical(weights, error)}) {
    std::error_code unreadable;  // then reading says what is wrong
    const fs::path path = file.parent_path() / kConfigName;
    if (fs::exists(path, unreadable) || unreadable) return path;
  }
  return std::nullopt;
}

std::shared_ptr<CausalLm> make_causal_lm(const ModelConfig& config, uint64_t seed) {
  if (const auto* gpt2 = std::get_if<Gpt2Config>(&config))
    return std::make_shared<Gpt2Impl>(*gpt2, seed);
  return std::make_shared<LlamaImpl>(std::get<LlamaConfig>(config), seed);
}

std::shared_ptr<CausalLm> load_pretrained(const fs::path& given) {
  const WeightFiles files(model_at(given));
  const std::optional<fs::path> config_path = config_beside(files.path());
  ModelConfig config;
  if (config_path) {
    config = read_hf_config(*config_path);
  } else {
    const FoundSizes found = sizes_of(files, std::nullopt);
    FUSEDBUN_REQUIRE(!found.heads_are_assumed, DataError,
                     "neither " + files.path().string() +
                         " nor a config.json beside it says how many heads the model has");
    config = found.config;
  }
  std::shared_ptr<CausalLm> model = make_causal_lm(config, /*seed=*/0);
  load_weights(files, *model);
  return model;
}

std::vector<int64_t> end_tokens(const fs::path& folder) {
  for (const char* name : {"generation_config.json", kConfigName}) {
    const fs::path path = folder / name;
    std::error_code error;
    if (!fs::exists(path, error)) continue;
    const auto json = nlohmann::json::parse(run_folder::read_text_file(path), nullptr,
                                            /*allow_exceptions=*/false);
    FUSEDBUN_REQUIRE(json.is_object(), DataError, path.string() + " is no JSON object");
    nlohmann::json ids = json.value("eos_token_id", nlohmann::json());
    if (ids.is_null()) continue;
    if (!ids.is_array()) ids = nlohmann::json::array({ids});
    std::vector<int64_t> tokens;
    for (const auto& id : ids) {
      FUSEDBUN_REQUIRE(id.is_number_integer(), DataError,
                       path.string() + " says eos_token_id = " + json["eos_token_id"].dump());
      tokens.push_back(id.get<int64_t>());
    }
    return tokens;
  }
  return {};
}

}  // namespace fusedbun::model

#pragma once
// A model that exists: where its files are, and the model itself with its weights.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/hf_config.h"

namespace fusedbun::model {

/// The weights that `given` names: a safetensors file or the index of several, itself or what a folder has. Throws DataError if the folder
/// has neither.
std::filesystem::path model_at(const std::filesystem::path& given);

/// The config.json beside these weights: beside the link, where Hugging Face's cache has it, or beside the file it leads to.
std::optional<std::filesystem::path> config_beside(const std::filesystem::path& weights);

/// With weights drawn from `seed`.
std::shared_ptr<CausalLm> make_causal_lm(const ModelConfig& config, uint64_t seed);

/// The model of a folder, or of a GPT-2's file that stands alone, in float32. Throws DataError for files that are missing or of different
/// models, and where nothing says a GPT-2's number of heads; else as read_hf_config and load_weights do.
std::shared_ptr<CausalLm> load_pretrained(const std::filesystem::path& given);

/// The tokens with which a text ends: eos_token_id of generation_config.json, or if that does not say, of config.json; often one, sometimes
/// none. Throws DataError for a file that is no JSON object, and for an id that is no number.
std::vector<int64_t> end_tokens(const std::filesystem::path& folder);

}  // namespace fusedbun::model

#pragma once
// The config.json that `transformers` keeps beside a GPT-2: what no shape in the model's file shows.
//
// Thread safety: a function without state.
#include <cstdint>
#include <filesystem>
#include <optional>

namespace fusedbun::train {

struct HfConfig {
  std::filesystem::path path;
  std::optional<int64_t> n_layer, n_head, n_embd;  ///< as far as it says
};

/// Nothing if there is no such file. Throws DataError if it is no JSON object, or naming the first field by which the model
/// computes something else than Gpt2 (another activation, another epsilon, untied embeddings ...).
std::optional<HfConfig> read_hf_config(const std::filesystem::path& path);

}  // namespace fusedbun::train

#pragma once
// A Gpt2 as a safetensors file in Hugging Face's GPT-2 naming and orientation, so that `transformers` reads what we
// write and we read what it wrote.
//
// Differences at this border: Hugging Face keeps the weights of c_attn, c_proj and c_fc as [in, out] (Conv1D); names
// may start with "transformer."; files may hold the causal mask (attn.bias) and the tied output layer (lm_head.weight).
// The number of heads is not visible in any shape: we write it as metadata, and files without it need it from the
// caller.
//
// Thread safety: pure functions of the model and the file.
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "fusedbun/dist/checkpoint/safetensors.h"
#include "fusedbun/launcher/train/gpt2.h"

namespace fusedbun::train {

/// A number of heads that did not come from the model's file, and who says so: "--heads".
struct HeadsSaid {
  int64_t heads;
  std::string by;
};

struct FoundSizes {
  Gpt2Config config;
  bool heads_are_assumed;  ///< nobody says: a head is then 64 wide, as in all of OpenAI's
};

/// The sizes of the model in `file`. Throws DataError if this is no GPT-2, ConfigError if `said` contradicts the file's
/// metadata.
FoundSizes sizes_of(const checkpoint::SafetensorsFile& file, const std::optional<HeadsSaid>& said);

/// Copies the file's values (F32, F16, BF16) into `model`. Throws DataError naming the tensor that is missing, unknown,
/// of another shape or type, or an output layer that is not tied.
void load_hf(const checkpoint::SafetensorsFile& file, Gpt2& model);

/// Whether files hold this parameter as its transpose: Hugging Face's Conv1D weights.
bool is_stored_transposed(std::string_view name);
/// What a file of this model says beside its tensors: the number of heads.
checkpoint::Metadata hf_metadata(const Gpt2& model);

/// Writes the model in float32, atomically. Throws IoError.
void save_hf(const std::filesystem::path& path, const Gpt2& model);

}  // namespace fusedbun::train

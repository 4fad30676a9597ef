#pragma once
// A model's weights as Hugging Face keeps them: one safetensors file, or several and an index that says which tensor is in which.
//
// At this border names may have the family's prefix or lack it ("transformer.h.0...", "h.0..."), GPT-2's linear weights are [in, out]
// (Conv1D), a tied output layer may be there as well, and old files hold buffers.
//
// Thread safety: read-only after construction.
#include <deque>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "fusedbun/dist/checkpoint/safetensors.h"
#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/hf_config.h"

namespace fusedbun::model {

using checkpoint::kWeightsName;
inline constexpr const char* kIndexName = "model.safetensors.index.json";

class WeightFiles {
 public:
  /// `path`: a safetensors file, or an index beside its files. Throws DataError for a file that is missing, unreadable or no safetensors, a
  /// tensor that the index names and its file lacks, and one that is there twice; IoError where the disk fails.
  explicit WeightFiles(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// By name, without the prefixes "transformer." and "model.".
  const std::map<std::string, const checkpoint::StoredTensor*>& tensors() const { return tensors_; }
  /// Of the only file; of several there is none.
  const checkpoint::Metadata& metadata() const { return metadata_; }

 private:
  void add(const checkpoint::StoredTensor& tensor);

  std::filesystem::path path_;
  std::deque<checkpoint::SafetensorsFile> files_;
  std::map<std::string, const checkpoint::StoredTensor*> tensors_;
  checkpoint::Metadata metadata_;
};

/// Whether files hold this parameter of `model` as its transpose: GPT-2's Conv1D weights.
bool is_stored_transposed(const CausalLm& model, std::string_view name);

/// Copies the values (F32, F16, BF16) into `model`, whose parameters keep their type. Throws DataError naming the tensor that is missing,
/// unknown, of another shape or type, or an output layer that is not tied where the model's is; ConfigError naming the first that holds NaN
/// or inf.
void load_weights(const WeightFiles& files, CausalLm& model);

/// Writes the model's parameters in their type, atomically. Throws IoError.
void save_weights(const std::filesystem::path& path, const CausalLm& model,
                  const checkpoint::Metadata& metadata);

}  // namespace fusedbun::model

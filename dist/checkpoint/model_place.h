#pragma once
// Where a model is left for other programs: in a folder that transformers opens, or as a file of weights alone.
//
// Thread safety: functions without state.
#include <filesystem>

namespace fusedbun::checkpoint {

struct ModelPlace {
  std::filesystem::path weights;
  /// The weights' folder is the model's: config.json and the tokenizer's files go there too.
  bool is_folder = false;

  bool operator==(const ModelPlace&) const = default;
};

/// A path that ends in .safetensors is a file of weights; any other is a folder, which gets them as model.safetensors.
ModelPlace place_of(const std::filesystem::path& given);

/// Throws IoError now rather than after hours of work if nothing can be written there. Leaves nothing behind.
void require_writable(const ModelPlace& place);

/// Makes the folder that a place is, and what is missing above it. Throws IoError.
void make_folder(const ModelPlace& place);

}  // namespace fusedbun::checkpoint

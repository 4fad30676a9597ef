#pragma once
// The file of one rank: safetensors with the boxes of tensors that this rank holds, and the header key that lets
// torch.distributed.checkpoint's HuggingFaceStorageReader put the boxes of all ranks together (FORMAT.md). And companions: files
// that go with the model's weights, as config.json and tokenizer.json do.
//
// Thread safety: functions without state.
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/checkpoint/manifest.h"

namespace fusedbun::checkpoint {

/// A box of a tensor in memory, row-major and contiguous.
struct PartInMemory {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t>
      shape;  ///< of this part; without elements only where the whole tensor has none
  std::vector<int64_t> offsets;  ///< of its first element in the whole tensor
  std::span<const std::byte> bytes;
};

/// "model/shard-00002-model-00001-of-00001.safetensors" for rank 1's first file of folder "model".
std::string shard_path(std::string_view folder, int rank, int index, int count);
/// Is it a path that shard_path makes, of one of the three folders of a checkpoint?
bool is_shard_path(std::string_view path);

/// Of a companion; the largest tokenizers have tens of millions.
inline constexpr int64_t kCompanionBytesMax = int64_t{256} << 20;
/// "model/tokenizer.json": names of companions have letters, digits, '_', '-' and '.', begin with none of the last two, and are no shard's.
std::string companion_path(std::string_view name);
bool is_companion_path(std::string_view path);
/// Throws ConfigError for a name that no companion can have, and for too many bytes.
void require_companion(std::string_view name, int64_t bytes);
/// Of one for which is_companion_path holds.
std::string_view companion_name(std::string_view path);

/// Of the format's types those that torch reads right; the others it takes for float32 without a word.
bool is_storable(Dtype dtype);
std::optional<Dtype> find_storable(std::string_view name);
std::string storable_names();  ///< "U8, I8, ..."

/// Writes `parts` (names unique in the file) to a new file `checkpoint`/`path` and fsyncs it; its folder is the caller's to
/// sync. Returns what the manifest lists of it. Throws IoError with path and reason, and ConfigError naming the tensor that no
/// such file can hold (its type, its name, more than 8 dimensions); no file is left then.
StoredFile write_shard_file(const std::filesystem::path& checkpoint, const std::string& path,
                            std::span<const PartInMemory> parts, const Metadata& metadata = {});

/// Writes a companion as write_shard_file writes tensors. Throws as require_companion; IoError.
StoredFile write_companion(const std::filesystem::path& checkpoint, std::string_view name,
                           std::string_view bytes);

}  // namespace fusedbun::checkpoint

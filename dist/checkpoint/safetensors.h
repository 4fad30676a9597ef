#pragma once
// safetensors files: named tensors as a JSON header and one block of bytes, readable from Python,
// never executing anything. Format: https://github.com/huggingface/safetensors (header length as
// u64 little endian | header | data).
//
// Invariants:
// 1. A file is believed only as a whole: the constructor checks everything that can be checked
// without looking at values,
//    and refuses with a DataError naming path, tensor and rule. Values are not judged (NaN is
//    fine).
// 2. Stricter than the format where files could fool a reader: no key twice, no unknown field, at
// most 1e6 tensors, names of
//    at most 4096 bytes, at most 8 dimensions, a header of at most 100 MB.
// 3. Writing is atomic (atomic_file.h).
//
// Thread safety: a SafetensorsFile is read-only after construction and may be shared.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::checkpoint {

/// Of a model's weights in a folder, as Hugging Face has them.
inline constexpr const char* kWeightsName = "model.safetensors";

/// Element types of the format, in its own order: smaller elements first.
enum class Dtype : uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64
};
/// As the header spells it: "BF16".
std::string_view name_of(Dtype dtype);
int64_t bits_of(Dtype dtype);

using Metadata = std::map<std::string, std::string, std::less<>>;

/// One tensor of a file that was read: row-major, little endian.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;        ///< empty: a scalar
  std::span<const std::byte> bytes;  ///< lives as long as the SafetensorsFile
};

/// A file, mapped into memory. A file that is cut while it is mapped ends the process with SIGBUS,
/// as with any mapping; files written by write_safetensors are never changed in place.
class SafetensorsFile {
 public:
  /// Throws DataError (a rule is broken, with path and tensor) or IoError (it cannot be read). Only
  /// regular files are opened, and no symbolic link is followed: resolve a path that a person gave
  /// first.
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;  // owns the mapping

  const std::filesystem::path& path() const { return path_; }
  /// In order of their place in the file.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  /// nullptr if there is none of that name.
  const StoredTensor* find(std::string_view name) const;

 private:
  std::filesystem::path path_;
  std::span<const std::byte> mapping_;
  std::vector<StoredTensor> tensors_;
  Metadata metadata_;
};

/// Writes `tensors` (names unique, bytes as long as shape and type say; else it is our bug) to
/// `path`, replacing what is there, atomically. Throws IoError.
void write_safetensors(const std::filesystem::path& path, std::span<const StoredTensor> tensors,
                       const Metadata& metadata = {});

}  // namespace fusedbun::checkpoint

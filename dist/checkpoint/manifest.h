#pragma once
// Manifest: what a checkpoint says of itself, written last. What it does not list is not part of the checkpoint; a folder
// without it is none. The text is JSON (FORMAT.md), and its last field is the XXH3-128 of all bytes before it.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/element_type.h"
#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/change.h"
#include "fusedbun/dist/checkpoint/safetensors.h"

namespace fusedbun::checkpoint {

/// XXH3 with 128 bits, of bytes as they lie in the file.
struct Digest {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const Digest&) const = default;
};
Digest digest_of(std::span<const std::byte> bytes);
std::string hexadecimal(const Digest& digest);  ///< 32 digits

/// A box of a tensor, in one file.
struct StoredPart {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;    ///< of this part
  std::vector<int64_t> offsets;  ///< of its first element in the whole tensor
  Digest digest;                 ///< of its bytes
};

struct StoredFile {
  std::string path;  ///< in the checkpoint: "model/shard-00001-model-00001-of-00001.safetensors"
  int64_t bytes = 0;
  Digest header;  ///< of all bytes before the tensors'
  std::vector<StoredPart> parts;
};

struct StoredParameter {
  std::string name;
  std::vector<int64_t> shape;
  ElementType type = ElementType::f32;
  int group = 0;
  MatrixView matrix_view = MatrixView::leading;
  /// Its values are stored as the transpose ([in, out] where the program has [out, in]); its state never is.
  bool transposed = false;
};

struct StoredGroup {
  Options options;               ///< lr as the program or its schedule set it
  std::optional<double> lr_pin;  ///< a change holds it against the schedule
};

/// Texts of the program that saved: "epoch" -> "3".
using Values = std::map<std::string, std::string, std::less<>>;

struct Manifest {
  int64_t job_step = 0;  ///< steps done; the next one's number
  int64_t skipped_steps = 0;
  int world_size = 1;  ///< of the job that saved
  std::string written;  ///< "2026-11-27T08:00:00Z"
  std::string version;  ///< of the program that saved
  std::vector<StoredParameter> parameters;  ///< in order of registration
  std::vector<StoredGroup> groups;
  /// Changes made while the job ran: what they set beside the groups' options, and those that wait for their step.
  std::optional<double> max_grad_norm;
  double lr_scale = 1;
  int64_t active_revision = 0;  ///< newest in use
  int64_t known_revision = 0;   ///< newest accepted
  uint64_t chain_hash = 0;      ///< of all changes up to known_revision
  std::vector<changes::ChangeEntry> scheduled;
  Values values;
  std::vector<StoredFile> files;
};

std::string format_manifest(const Manifest& manifest);
/// Throws DataError with the broken rule: not the bytes that format_manifest wrote, another format or version, a field
/// missing, twice, unknown or out of range, a path that leaves the checkpoint, a part outside its tensor.
Manifest parse_manifest(std::string_view text);

}  // namespace fusedbun::checkpoint

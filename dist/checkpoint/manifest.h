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
#include "fusedbun/core/loss_scale.h"
#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/change.h"
#include "fusedbun/dist/checkpoint/digest.h"
#include "fusedbun/dist/checkpoint/safetensors.h"

namespace fusedbun::checkpoint {

inline constexpr int64_t kManifestVersion = 1;
/// A larger manifest.json is not read.
inline constexpr int64_t kManifestBytesMax = int64_t{1} << 30;

/// A box of a tensor, in one file.
struct StoredPart {
  std::string name;
  Dtype dtype = Dtype::F32;
  std::vector<int64_t> shape;    ///< of this part
  std::vector<int64_t> offsets;  ///< of its first element in the whole tensor
  Digest digest;                 ///< of its bytes
};

struct StoredFile {
  /// In the checkpoint: "model/shard-00001-model-00001-of-00001.safetensors", or "model/tokenizer.json", a file that goes with the weights
  /// and has no parts.
  std::string path;
  int64_t bytes = 0;
  Digest header;  ///< of all bytes before the tensors'; without parts of the whole file
  std::vector<StoredPart>
      parts;  ///< in the order of their bytes, which follow the header without gap
};
/// Bytes before the tensors': those that the parts leave. Throws DataError where so many cannot be.
int64_t header_bytes_of(const StoredFile& file);

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
  double gradient_norm = 0;  ///< of the last step, where the next one is clipped by it; else 0
  std::optional<LossScaleState> loss_scale;  ///< of the next step, where it is dynamic
  int world_size = 1;                        ///< of the job that saved
  std::string written;                       ///< "2026-11-27T08:00:00Z"
  std::string version;                       ///< of the program that saved
  std::vector<StoredParameter> parameters;   ///< in order of registration
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
  Digest digest = {};  ///< its last field; known once it was parsed
};

/// Throws ConfigError for what JSON cannot hold: a number that is not finite, a text that is not UTF-8.
std::string format_manifest(const Manifest& manifest);
/// Throws DataError with the broken rule: not the bytes that format_manifest wrote, another format or version, a field
/// missing, twice, unknown or out of range, a path that leaves the checkpoint, a part whose place overflows.
Manifest parse_manifest(std::string_view text);

}  // namespace fusedbun::checkpoint

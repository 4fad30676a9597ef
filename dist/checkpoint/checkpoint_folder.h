#pragma once
// CheckpointFolder: the checkpoints of one run, a folder each, and the order of writes that makes one exist as a whole or
// not at all, also after a power cut:
//
//   begin      ROOT/step-N.tmp and its folders                     one rank
//   write      every rank its files, each fsynced; sync_folders    all ranks
//   publish    manifest.json (fsync), step-N.tmp renamed to step-N, ROOT fsynced, then `latest` replaced     one rank, when
//              all ranks have said that theirs is durable
//
// Invariants: 1. A folder step-N is a whole checkpoint; what a killed process leaves is named *.tmp or *.removed, and goes
// at the next start. 2. `latest` names the newest one whose publish() returned. 3. The last whole checkpoint is never removed.
// 4. A step that is saved again is never without a whole checkpoint: the two folders exchange their names in one step. Where
// the file system knows no such exchange, the old one is named step-N.replaced for a moment; if that moment is the last of the
// process, remove_leftovers() gives it its name back.
//
// Thread safety: one thread at a time, and one rank where it says so.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/checkpoint/manifest.h"

namespace fusedbun::checkpoint {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kLatestName = "latest";
/// The folders of a checkpoint that hold files: values of the model, state of the optimizer, tensors of the program.
inline constexpr const char* kModelFolder = "model";
inline constexpr const char* kOptimizerFolder = "optimizer";
inline constexpr const char* kTensorsFolder = "tensors";

/// "500": the number of a step as people and folders write it. Nothing for any other text, such as a path.
std::optional<int64_t> read_step(std::string_view text);

class CheckpointFolder {
 public:
  /// Nothing is touched.
  explicit CheckpointFolder(std::filesystem::path root);

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path path_of(int64_t job_step) const;
  std::filesystem::path path_under_way(int64_t job_step) const;

  /// One rank, before the others write. Makes ROOT where it is missing, and step-N.tmp empty except for the three folders.
  /// Throws IoError, as all of these.
  void begin(int64_t job_step) const;
  /// After a rank has written its files: fsyncs the folders they are in.
  void sync_folders(int64_t job_step) const;
  /// One rank. A checkpoint of the same step that is there already is replaced: both are whole, and one is there at any time.
  /// Throws DataError if the manifest is not that of a whole checkpoint (a tensor whose parts leave a gap, overlap, or differ in
  /// type), ConfigError for values that it cannot hold, IoError as the others, also if a listed file is not there: then this
  /// rank does not see what another has written. After an error, discard(); step-N is
  /// what it was before, but where only `latest` could not be written: then it is the new one, whole and durable. Returns the
  /// manifest's digest.
  Digest publish(const Manifest& manifest) const;
  /// One rank: what a failed save has left goes.
  void discard(int64_t job_step) const noexcept;

  /// Steps of all folders step-N, the newest first, whether what they hold is right or not.
  std::vector<int64_t> steps() const;
  /// One rank. Removes the oldest so that `keep` (at least 1) stay; only folders with a manifest that can be read count, and
  /// others are not touched. Returns what was removed.
  std::vector<int64_t> remove_oldest(int keep) const;
  /// One rank, when the run goes on after `job_step`: later checkpoints are of steps that will be done anew, so they are named
  /// step-N.set-aside, count no more and are kept. Returns their steps.
  std::vector<int64_t> set_aside_after(int64_t job_step) const;
  /// One rank, when the run folder's lock is held: what killed processes left goes.
  void remove_leftovers() const noexcept;

 private:
  std::filesystem::path root_;
};

}  // namespace fusedbun::checkpoint

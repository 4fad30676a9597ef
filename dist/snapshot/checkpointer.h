#pragma once
// Checkpointer: saves what a job has learned while it goes on, and brings it back on any number of ranks.
//
//   save   copies rows, state and tensors at a step boundary (the only time that training waits), and returns; a thread writes them,
//          the ranks tell one another that theirs are durable, rank 0 publishes. A save that fails, on a full disk or a broken one,
//          is told and costs the run nothing: the checkpoint before it stays.
//   load   every rank checks the whole checkpoint together with the others before anything is changed, then reads the rows that
//          it owns.
//
// The format is dist/checkpoint/FORMAT.md. Saving while training goes on follows CheckFreq (Mohan et al., 2021); loading by
// names and boxes on any number of ranks follows PyTorch's distributed checkpoint.
//
// Invariants: 1. One save is under way at a time. 2. All calls but wait() and status() are collective.
//
// Thread safety: one thread at a time.
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "fusedbun/dist/checkpoint/digest.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/snapshot/contents.h"

namespace fusedbun {

/// A checkpoint that is durable.
struct SavedCheckpoint {
  int64_t job_step = 0;
  std::filesystem::path folder;
  int64_t bytes = 0;               ///< of all ranks
  double seconds = 0;              ///< since its state was copied
  checkpoint::Digest digest = {};  ///< of its manifest
};

/// Its state is copied, and being written.
struct SaveStarted {
  int64_t job_step = 0;
};
/// save() did nothing, because an earlier save was not done on some rank.
struct SaveRefused {
  int64_t job_step = 0;
};
/// The checkpoint before it stays.
struct SaveFailed {
  int64_t job_step = 0;
  std::string problem;  ///< a sentence
};
/// It was durable, and newer ones have taken its place; or it was set aside.
struct CheckpointDeleted {
  int64_t job_step = 0;
};
using CheckpointEvent =
    std::variant<SaveStarted, SaveRefused, SavedCheckpoint, SaveFailed, CheckpointDeleted>;

struct CheckpointerOptions {
  /// Holds a folder per checkpoint; on a file system that all ranks see. Made when the first one is saved.
  std::filesystem::path folder;
  int keep = 3;  ///< older ones are removed when a new one is durable; 0: none is
  /// Called with one sentence that a person should know, from the thread that writes.
  std::function<void(std::string_view sentence)> notice = {};
  /// Called on rank 0 with what becomes of saves: SaveStarted and SaveRefused by the thread that calls save(), the others by the one that writes.
  /// What it throws is told as a notice.
  std::function<void(const CheckpointEvent& event)> on_event = {};
};

enum class SaveStart : uint8_t {
  started,    ///< the state is copied
  under_way,  ///< an earlier save is not done on some rank: ask again later
};

struct LoadOptions {
  /// The checkpoint of this step; none: the newest.
  std::optional<int64_t> job_step = {};
  /// Of another run: a checkpoint's folder, a folder of checkpoints, or a run folder. Its hyperparameters hold, and the changes
  /// that made them stay its own history. Empty: CheckpointerOptions::folder.
  std::filesystem::path path = {};
  /// Take what fits, where parameters were added, removed or reshaped. Otherwise such a checkpoint is refused.
  bool partial = false;
  /// Where the newest is damaged, take the newest that is not.
  bool fallback = false;
  /// Called on all ranks with the values of the checkpoint and its folder before anything of it is taken; what it throws refuses it.
  std::function<void(const CheckpointTexts& values, const std::filesystem::path& folder)> judge =
      {};
};

struct Loaded {
  int64_t job_step = 0;
  std::filesystem::path folder;
  int world_size = 0;  ///< of the job that saved
  CheckpointTexts values;
  std::vector<std::string> left_out;  ///< with `partial`: what was not taken, a sentence each
  std::vector<std::string> damaged;   ///< with `fallback`: what was passed over, a sentence each
};

namespace snapshot {
class CheckpointWriter;
}

class Checkpointer {
 public:
  /// Of a job: `host` connects its ranks and outlives this.
  Checkpointer(comm::Communicator& host, CheckpointerOptions options);
  /// Of one process.
  explicit Checkpointer(CheckpointerOptions options);
  /// Waits for the save under way.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;  // owns a thread

  /// Between two steps, on all ranks at the same one. While an earlier one is being written nothing is saved, and a notice says so
  /// once: a last save comes after wait(). Throws ConfigError for contents that cannot be saved, and what the
  /// optimizer's collective calls throw; never because of a disk.
  SaveStart save(const CheckpointContents& contents);
  /// Waits until the save under way is durable or has failed; asks `gives_up`, if given, while it waits. False if it gave up.
  bool wait(const std::function<bool()>& gives_up = {});

  /// Nothing on the disk changes. The first save after it renames later checkpoints of the folder, whose steps are done anew, to
  /// step-N.set-aside.
  ///
  /// Nothing if there is no checkpoint. Throws, on all ranks alike and before anything is changed: DataError (65) for a
  /// checkpoint that is damaged, or of another model or other structural options, with file, tensor or parameter; IoError (74).
  std::optional<Loaded> load(const CheckpointContents& contents, const LoadOptions& options = {});

  /// What a person wants to know of its saves.
  struct Status {
    std::optional<int64_t> durable;    ///< job step of the newest that this object saved or loaded
    std::optional<int64_t> under_way;  ///< of the save under way
    int64_t failed_saves = 0;
    std::string last_failure;  ///< a sentence; empty: the last save did not fail
    double last_seconds = 0;   ///< from copying to durable
  };
  /// Any thread.
  Status status() const;
  const std::filesystem::path& folder() const { return options_.folder; }

 private:
  void refuse(int64_t job_step);
  std::vector<std::filesystem::path> candidates(const LoadOptions& options) const;

  std::unique_ptr<comm::Communicator> own_host_;  ///< of one process
  comm::Communicator& host_;
  CheckpointerOptions options_;
  std::unique_ptr<snapshot::CheckpointWriter> writer_;
  std::optional<int64_t> said_to_be_under_way_;
};

}  // namespace fusedbun

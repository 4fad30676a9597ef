#pragma once
// CheckpointWriter: the thread of one rank that writes a copied state, and the few messages by which the ranks make one
// checkpoint of their files.
//
//   rank 0 makes step-N.tmp  ->  every rank writes its files and fsyncs them  ->  rank 0 hears that all are durable, publishes,
//   removes old ones  ->  every rank hears how it ended
//
// Thread safety: the job's thread, but status() any.
#include <condition_variable>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/shard_file.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/snapshot/checkpointer.h"

namespace fusedbun::snapshot {

/// What one rank writes. The parts look into `memory`.
struct CopiedState {
  checkpoint::Manifest manifest;  ///< without files; rank 0's counts
  struct File {
    const char* folder = nullptr;
    int index = 0, count = 1;  ///< of this rank's files in the folder
    std::vector<checkpoint::PartInMemory> parts;
  };
  std::vector<File> files;
  std::vector<std::byte> memory;
  checkpoint::Metadata model_metadata;
  std::map<std::string, std::string, std::less<>> companions;  ///< rank 0's
};

class CheckpointWriter {
 public:
  /// `host` is the writer's alone.
  CheckpointWriter(std::unique_ptr<comm::Communicator> host, CheckpointerOptions options);
  /// Waits for the save under way.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;

  bool is_busy() const;
  /// Not while it is busy.
  void start(CopiedState state);
  bool wait(const std::function<bool()>& gives_up);
  /// On rank 0; any thread.
  void tell(const CheckpointEvent& event) const;
  void say(const std::string& sentence) const;
  /// Not while it is busy. `from_own_folder`: later checkpoints there are of steps that are done anew.
  void note_loaded(int64_t job_step, bool from_own_folder);
  Checkpointer::Status status() const;
  /// Memory of the last save, to copy the next one into.
  std::vector<std::byte> take_memory() { return std::move(memory_); }

 private:
  void write(CopiedState& state);
  /// What keeps this checkpoint from being whole, the same on every rank; empty: it is durable.
  std::string make_durable(CopiedState& state);
  std::vector<checkpoint::StoredFile> write_files(const CopiedState& state) const;
  void publish(CopiedState& state, const std::vector<std::string>& told);
  void begin(int64_t job_step);
  void remove_oldest() const;

  const std::unique_ptr<comm::Communicator> host_;
  const CheckpointerOptions options_;
  const checkpoint::CheckpointFolder folder_;
  std::thread thread_;
  std::optional<int64_t>
      went_on_after_;              ///< and nothing was saved since; the thread's while it runs
  std::vector<std::byte> memory_;  ///< the thread's while it runs
  SavedCheckpoint published_;      ///< rank 0's newest; the thread's
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  bool busy_ = false;
  Checkpointer::Status status_;
};

}  // namespace fusedbun::snapshot

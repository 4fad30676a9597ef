#pragma once
// ChangeCommitter: from a request to a change that is on disk and in the ledger. One thread writes; the requests that come while
// it waits for the disk are then proposed on top of one another and written with one fdatasync (group commit).
//
// Invariants: 1. A change is in the log, on disk, before the ledger has it, so before anybody sees it: clients, the training
// loop. 2. The ledger's lock is never held while the disk is waited for. 3. A disk that hangs keeps the writing thread, and
// nobody else for longer than its patience, the destructor included. 4. A request whose batch was not written is answered as
// if the others of the batch had not been there.
//
// Thread safety: all members, from any thread.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_batch.h"
#include "fusedbun/dist/changes/change_history.h"
#include "fusedbun/dist/changes/change_log.h"

namespace fusedbun::changes {

class ChangeCommitter {
 public:
  using Clock = std::chrono::steady_clock;

  /// Called with the ledger's lock held.
  struct Hooks {
    std::function<void()> observe;  ///< the ledger learns of the last finished step
    std::function<std::optional<Refusal>()> refused_by_state;
    std::function<void(int64_t revision)> published;
    /// Serializes a settled change for the history.
    std::function<std::string(const AcceptedChange& change)> text_of;
  };
  /// How long one who asks waits.
  struct Patience {
    Clock::time_point until;
    std::function<bool()> gone = {};  ///< the client has gone; checked every 0.1 s
  };
  /// Requests that wait for the disk; more are refused at once.
  static constexpr size_t kWaitingMax = 32;

  /// The ledger and its lock outlive this object. Log and history may be written to after its end, if the disk hangs then.
  ChangeCommitter(ChangeLedger& ledger, std::mutex& ledger_mutex, std::shared_ptr<ChangeLog> log,
                  std::shared_ptr<ChangeHistory> history, Hooks hooks);
  /// Waits for what is being written, for up to `close_grace`.
  ~ChangeCommitter();
  ChangeCommitter(const ChangeCommitter&) = delete;  // owns a thread

  /// A request that repeats one gets that one's revision in every state of the job; a refusal changes nothing. UNAVAILABLE
  /// LOG_WRITE_FAILED if the disk refuses, LOG_SLOW if it has not answered in time; the sentence of LOG_SLOW says whether the
  /// change may still be taken. The ledger's lock is not held by the caller.
  ChangeBatch::Answer commit(ChangeRequest request, const Patience& patience);
  /// What commit() would do, up to the log. With the ledger's lock held.
  ChangeLedger::Verdict dry_run(const ChangeRequest& request) const;
  /// Has this request been taken before? With the ledger's lock held.
  bool is_repeated(const ChangeRequest& request) const { return ledger_.is_repeated(request); }
  /// The job step of a change that is asked for now. With the ledger's lock held.
  int64_t next_step() const { return ledger_.next_step(margin_.spare_steps()); }
  /// After the batch that is being written. False if the disk refuses, or has not answered until then.
  bool append_run_end(RunEnd end, Clock::time_point until);

  /// Requests that wait and are not being written.
  size_t waiting() const;

  std::chrono::milliseconds close_grace{5'000};  ///< set before the end

 private:
  struct Waiting {
    ChangeRequest request;
    bool is_being_written = false;
    std::optional<ChangeBatch::Answer> answer = {};
  };
  using Batch = std::vector<std::shared_ptr<Waiting>>;
  /// What the writing thread shares with the others. It outlives this object while the disk hangs.
  struct Desk {
    std::shared_ptr<ChangeLog> log;
    std::shared_ptr<ChangeHistory> history;

    std::mutex mutex;  ///< guards what follows; the ledger's lock is never taken under it
    std::condition_variable work;
    std::condition_variable answered;
    Batch waiting;
    std::optional<RunEnd> end;
    std::optional<bool> end_is_written;
    bool at_disk = false;
    bool closed = false;     ///< no more work comes
    bool abandoned = false;  ///< the object has gone while its thread was at the disk
    bool has_ended = false;  ///< the thread has
  };

  void run(const std::shared_ptr<Desk>& desk);
  /// Runs `action`, which waits for the disk, without a lock. False: this object has gone meanwhile. What `action` throws is
  /// in `error`.
  static bool at_disk(Desk& desk, const std::function<void()>& action,
                      std::optional<IoError>& error);
  /// False: this object has gone.
  bool write(Desk& desk, const Batch& batch);
  bool write_end(Desk& desk, const RunEnd& end);
  /// Settled changes go from the ledger to the history. If that cannot be written they stay, and are tried again.
  bool forget_settled(Desk& desk);

  struct Staged {
    ChangeBatch batch;
    std::vector<LedgerGroup> groups;
  };
  Staged stage(const Batch& requests);
  bool publish(ChangeBatch& batch);
  std::vector<ChangeBatch::Answer> answers_without(const Batch& requests, const IoError& error,
                                                   bool stays);

  static constexpr size_t kBatchMax = 64;
  static constexpr size_t kForgottenAtOnce = 256;  ///< more than a batch brings

  ChangeLedger& ledger_;
  std::mutex& ledger_mutex_;
  const Hooks hooks_;
  CommitMargin margin_;  ///< guarded by ledger_mutex_
  const std::shared_ptr<Desk> desk_;
  std::thread thread_;
};

}  // namespace fusedbun::changes

#pragma once
// ChangeCommit: from a request to a change that is on disk and in the ledger. Requests that come while a batch is being written
// wait for it and then go together, so the disk is waited for once by all (group commit); whoever finds nobody writing
// writes for all that wait.
//
// Invariants: 1. A change is in the log, on disk, before the ledger has it, so before anybody sees it: clients, the training loop.
// 2. The ledger's lock is never held while the disk is waited for.
//
// Thread safety: all members, from any thread.
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "fusedbun/dist/changes/change_batch.h"
#include "fusedbun/dist/changes/change_log.h"

namespace fusedbun::changes {

class ChangeCommit {
 public:
  struct Hooks {
    // Called with the ledger's lock held:
    std::function<void()> observe;  ///< the ledger learns of the last finished step
    std::function<std::optional<Refusal>()> refused_by_state;
    std::function<void(int64_t revision)> published;
    // Called without it, by one thread at a time:
    std::function<void()> batch_written;
  };
  /// The three outlive this object.
  ChangeCommit(ChangeLedger& ledger, std::mutex& ledger_mutex, ChangeLog& log, Hooks hooks);

  /// Waits for the disk. A request that repeats one gets that one's revision in every state of the job; a refusal changes
  /// nothing; UNAVAILABLE LOG_WRITE_FAILED if the disk refuses. The ledger's lock is not held by the caller.
  ChangeBatch::Answer commit(const ChangeRequest& request);
  /// What commit() would do, up to the log. With the ledger's lock held.
  ChangeLedger::Verdict rehearse(const ChangeRequest& request) const;
  /// The job step of a change that is asked for now. With the ledger's lock held.
  int64_t next_step() const { return ledger_.next_step(margin_.spare_steps()); }
  /// Runs `action` while no batch is being written; it may write to the log.
  void between_batches(const std::function<void()>& action);

 private:
  struct Waiting {
    const ChangeRequest* request = nullptr;
    std::optional<ChangeBatch::Answer> answer = {};
  };
  void write(const std::vector<Waiting*>& waiting);
  bool try_write(const std::vector<const ChangeRequest*>& requests,
                 std::vector<ChangeBatch::Answer>& answers);
  struct Staged {
    ChangeBatch batch;
    std::vector<LedgerGroup> groups;
    int64_t revision_before = 0;
  };
  Staged stage(const std::vector<const ChangeRequest*>& requests);
  bool publish(ChangeBatch& batch);

  static constexpr size_t kBatchMax = 64;

  ChangeLedger& ledger_;
  std::mutex& ledger_mutex_;
  ChangeLog& log_;
  const Hooks hooks_;
  CommitMargin margin_;  ///< guarded by ledger_mutex_

  std::mutex queue_mutex_;
  std::condition_variable turn_;
  std::vector<Waiting*> queue_;
  bool writing_ = false;  ///< somebody uses the log
};

}  // namespace fusedbun::changes

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

#include "fusedbun/dist/control/change_log.h"
#include "fusedbun/dist/plan/change_batch.h"

namespace fusedbun::control {

class ChangeCommit {
 public:
  struct Hooks {
    // Called with the ledger's lock held:
    std::function<void()> observe;  ///< the ledger learns of the last finished step
    std::function<std::optional<plan::Refusal>()> refused_by_state;
    std::function<void(int64_t revision)> published;
    // Called without it, by one thread at a time:
    std::function<void()> batch_written;
  };
  /// The three outlive this object.
  ChangeCommit(plan::ChangeLedger& ledger, std::mutex& ledger_mutex, ChangeLog& log, Hooks hooks);

  /// Waits for the disk. A request that repeats one gets that one's revision in every state of the job; a refusal changes
  /// nothing; UNAVAILABLE LOG_WRITE_FAILED if the disk refuses. The ledger's lock is not held by the caller.
  plan::ChangeBatch::Answer commit(const plan::ChangeRequest& request);
  /// What commit() would do, up to the log. With the ledger's lock held.
  plan::ChangeLedger::Verdict rehearse(const plan::ChangeRequest& request) const;
  /// The job step of a change that is asked for now. With the ledger's lock held.
  int64_t next_step() const { return ledger_.next_step(margin_.spare_steps()); }
  /// Runs `action` while no batch is being written; it may write to the log.
  void between_batches(const std::function<void()>& action);

 private:
  struct Waiting {
    const plan::ChangeRequest* request = nullptr;
    std::optional<plan::ChangeBatch::Answer> answer = {};
  };
  void write(const std::vector<Waiting*>& waiting);
  bool try_write(const std::vector<const plan::ChangeRequest*>& requests,
                 std::vector<plan::ChangeBatch::Answer>& answers);
  struct Staged {
    plan::ChangeBatch batch;
    std::vector<plan::LedgerGroup> groups;
    int64_t revision_before = 0;
  };
  Staged stage(const std::vector<const plan::ChangeRequest*>& requests);
  bool publish(plan::ChangeBatch& batch);

  static constexpr size_t kBatchMax = 64;

  plan::ChangeLedger& ledger_;
  std::mutex& ledger_mutex_;
  ChangeLog& log_;
  const Hooks hooks_;
  plan::CommitMargin margin_;  ///< guarded by ledger_mutex_

  std::mutex queue_mutex_;
  std::condition_variable turn_;
  std::vector<Waiting*> queue_;
  bool writing_ = false;  ///< somebody uses the log
};

}  // namespace fusedbun::control

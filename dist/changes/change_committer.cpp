#include "fusedbun/dist/changes/change_committer.h"

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {

using Answer = ChangeBatch::Answer;

namespace {

/// How often a waiting request checks whether its client has gone.
constexpr std::chrono::milliseconds kLookInterval{100};

bool repeats_known(const Answer& answer, int64_t newest_revision) {
  const auto* replay = std::get_if<ChangeLedger::Replay>(&answer);
  return replay != nullptr && replay->revision <= newest_revision;
}

Refusal log_write_failed(const IoError& error, bool stays) {
  return {
      RefusalKind::unavailable,
      "LOG_WRITE_FAILED",
      std::string("the change was not taken, because it could not be logged: ") + error.what() +
          (stays ? "; it could not be removed from the file either: unless that succeeds before "
                   "this job ends, another attempt of the run would use it"
                 : ""),
      {}};
}

Refusal log_slow(const std::string& what) {
  return {
      RefusalKind::unavailable, "LOG_SLOW", "the disk of changes.log does not answer: " + what, {}};
}

}  // namespace

ChangeCommitter::ChangeCommitter(ChangeLedger& ledger, std::mutex& ledger_mutex,
                                 std::shared_ptr<ChangeLog> log,
                                 std::shared_ptr<ChangeHistory> history, Hooks hooks)
    : ledger_(ledger),
      ledger_mutex_(ledger_mutex),
      hooks_(std::move(hooks)),
      desk_(std::make_shared<Desk>()) {
  desk_->log = std::move(log);
  desk_->history = std::move(history);
  thread_ = std::thread([this, desk = desk_] { run(desk); });
}

ChangeCommitter::~ChangeCommitter() {
  std::unique_lock lock(desk_->mutex);
  desk_->closed = true;
  desk_->work.notify_all();
  const auto until = Clock::now() + close_grace;
  while (!desk_->has_ended) {
    // Away from the disk the thread is always soon done.
    if (Clock::now() >= until && desk_->at_disk) {
      desk_->abandoned = true;
      thread_.detach();
      return;
    }
    desk_->answered.wait_for(lock, kLookInterval);
  }
  lock.unlock();
  thread_.join();
}

// ---- who asks ----------------------------------------------------------------------------------

Answer ChangeCommitter::commit(ChangeRequest request, const Patience& patience) {
  const auto own = std::make_shared<Waiting>(Waiting{std::move(request)});
  std::unique_lock lock(desk_->mutex);
  if (desk_->waiting.size() >= kWaitingMax) {
    return log_slow("the change was not taken, " + std::to_string(kWaitingMax) +
                    " others wait already");
  }
  desk_->waiting.push_back(own);
  desk_->work.notify_all();
  while (!own->answer) {
    const auto now = Clock::now();
    if (now >= patience.until || (patience.gone && patience.gone())) {
      if (own->is_being_written) {
        return log_slow(
            "the change is being written; send it again with the same request_id to learn "
            "what became of it");
      }
      std::erase(desk_->waiting, own);
      return log_slow("the change was not taken");
    }
    desk_->answered.wait_until(lock, std::min(patience.until, now + kLookInterval));
  }
  return std::move(*own->answer);
}

ChangeLedger::Verdict ChangeCommitter::dry_run(const ChangeRequest& request) const {
  hooks_.observe();
  auto verdict = ledger_.propose(request, {}, margin_.spare_steps());
  if (std::holds_alternative<ChangeLedger::Replay>(verdict)) return verdict;
  if (auto refusal = hooks_.refused_by_state()) return std::move(*refusal);
  return verdict;
}

bool ChangeCommitter::append_run_end(RunEnd end, Clock::time_point until) {
  std::unique_lock lock(desk_->mutex);
  desk_->end = std::move(end);
  desk_->end_is_written.reset();
  desk_->work.notify_all();
  desk_->answered.wait_until(lock, until, [&] { return desk_->end_is_written.has_value(); });
  return desk_->end_is_written.value_or(false);
}

size_t ChangeCommitter::waiting() const {
  const std::lock_guard lock(desk_->mutex);
  return desk_->waiting.size();
}

// ---- the thread that writes --------------------------------------------------------------------

void ChangeCommitter::run(const std::shared_ptr<Desk>& desk) {
  for (bool is_there = true; is_there;) {
    Batch batch;
    std::optional<RunEnd> end;
    {
      std::unique_lock lock(desk->mutex);
      desk->work.wait(lock, [&] { return desk->closed || !desk->waiting.empty() || desk->end; });
      const auto last = desk->waiting.begin() +
                        static_cast<std::ptrdiff_t>(std::min(desk->waiting.size(), kBatchMax));
      batch.assign(desk->waiting.begin(), last);
      desk->waiting.erase(desk->waiting.begin(), last);
      for (const auto& one : batch) one->is_being_written = true;
      if (batch.empty()) end = std::exchange(desk->end, std::nullopt);
      if (batch.empty() && !end) break;
    }
    is_there = end ? write_end(*desk, *end) : write(*desk, batch);
    desk->answered.notify_all();
  }
  const std::lock_guard lock(desk->mutex);
  desk->has_ended = true;
  desk->answered.notify_all();
}

bool ChangeCommitter::at_disk(Desk& desk, const std::function<void()>& action,
                              std::optional<IoError>& error) {
  {
    const std::lock_guard lock(desk.mutex);
    desk.at_disk = true;
  }
  error.reset();
  try {
    action();
  } catch (const IoError& caught) {
    error = caught;
  }
  const std::lock_guard lock(desk.mutex);
  desk.at_disk = false;
  return !desk.abandoned;
}

bool ChangeCommitter::write(Desk& desk, const Batch& batch) {
  std::vector<Answer> answers;
  std::optional<IoError> error;
  for (bool is_done = false; !is_done;) {
    Staged staged = stage(batch);
    answers = std::move(staged.batch.answers);
    if (staged.batch.staged.empty()) break;
    if (!at_disk(
            desk, [&] { desk.log->append(staged.batch.staged, staged.groups); }, error))
      return false;
    if (!error) {
      is_done = publish(staged.batch);
      // Steps have passed the batch, which is staged again: each attempt spares twice as many, so it ends.
      if (!is_done && !at_disk(
                          desk, [&] { desk.log->undo_last_append(); }, error))
        return false;
    }
    if (error) {
      answers = answers_without(batch, *error, desk.log->holds_what_was_not_taken());
      is_done = true;
    }
  }
  if (!forget_settled(desk)) return false;
  const std::lock_guard lock(desk.mutex);
  for (size_t i = 0; i < batch.size(); ++i) batch[i]->answer = std::move(answers[i]);
  return true;
}

bool ChangeCommitter::write_end(Desk& desk, const RunEnd& end) {
  std::optional<IoError> error;
  if (!at_disk(
          desk, [&] { desk.log->append_run_end(end); }, error))
    return false;
  if (!forget_settled(desk)) return false;
  const std::lock_guard lock(desk.mutex);
  desk.end_is_written = !error.has_value();
  return true;
}

bool ChangeCommitter::forget_settled(Desk& desk) {
  std::vector<int64_t> revisions;
  std::vector<ChangeHistory::Entry> entries;
  {
    const std::lock_guard lock(ledger_mutex_);
    revisions = ledger_.settled(kForgottenAtOnce);
    for (const int64_t revision : revisions)
      entries.push_back({revision, hooks_.text_of(ledger_.change(revision))});
  }
  if (revisions.empty()) return true;
  std::optional<IoError> error;
  if (!at_disk(
          desk, [&] { desk.history->append(entries); }, error))
    return false;
  const std::lock_guard lock(ledger_mutex_);
  if (!error) ledger_.forget(revisions);
  return true;
}

// ---- with the ledger ---------------------------------------------------------------------------

ChangeCommitter::Staged ChangeCommitter::stage(const Batch& requests) {
  std::vector<const ChangeRequest*> pointers;
  for (const auto& one : requests) pointers.push_back(&one->request);
  const std::lock_guard lock(ledger_mutex_);
  hooks_.observe();
  Staged staged{changes::stage(ledger_, pointers, margin_.spare_steps()), ledger_.groups()};
  if (const auto refusal = hooks_.refused_by_state()) {
    staged.batch.staged.clear();
    for (Answer& answer : staged.batch.answers) {
      if (!repeats_known(answer, ledger_.newest_revision())) answer = *refusal;
    }
  }
  return staged;
}

bool ChangeCommitter::publish(ChangeBatch& batch) {
  const std::lock_guard lock(ledger_mutex_);
  const int64_t steps_passed = ledger_.current_step() - batch.staged_in_step;
  const int64_t first = ledger_.newest_revision() + 1;
  if (hooks_.refused_by_state()) return false;  // since it was staged
  if (!changes::publish(ledger_, batch)) {
    margin_.missed(steps_passed);
    return false;
  }
  margin_.published(steps_passed);
  for (int64_t revision = first; revision <= ledger_.newest_revision(); ++revision)
    hooks_.published(revision);
  return true;
}

std::vector<Answer> ChangeCommitter::answers_without(const Batch& requests, const IoError& error,
                                                     bool stays) {
  const std::lock_guard lock(ledger_mutex_);
  const auto refused_by_state = hooks_.refused_by_state();
  std::vector<Answer> answers;
  for (const auto& one : requests) {
    const ChangeRequest* request = &one->request;
    Answer& answer = answers.emplace_back(
        std::move(changes::stage(ledger_, {&request, 1}, margin_.spare_steps()).answers.front()));
    if (std::holds_alternative<ChangeBatch::Accepted>(answer))
      answer = log_write_failed(error, stays);
    if (refused_by_state && !std::holds_alternative<ChangeLedger::Replay>(answer))
      answer = *refused_by_state;
  }
  return answers;
}

}  // namespace fusedbun::changes

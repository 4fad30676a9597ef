#include "fusedbun/dist/changes/change_commit.h"

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {

using Answer = ChangeBatch::Answer;

namespace {

bool repeats_known(const Answer& answer, int64_t newest_revision) {
  const auto* replay = std::get_if<ChangeLedger::Replay>(&answer);
  return replay != nullptr && replay->revision <= newest_revision;
}

/// Does the answer speak of a change that was only staged?
bool rests_on_staged(const Answer& answer, int64_t revision_before) {
  if (const auto* refusal = std::get_if<Refusal>(&answer))
    return refusal->kind == RefusalKind::aborted;  // perhaps by a staged one
  return !repeats_known(answer, revision_before);
}

Refusal log_write_failed(const IoError& error) {
  return {RefusalKind::unavailable,
          "LOG_WRITE_FAILED",
          std::string("the change was not taken, because it could not be logged: ") + error.what(),
          {}};
}

}  // namespace

ChangeCommit::ChangeCommit(ChangeLedger& ledger, std::mutex& ledger_mutex, ChangeLog& log,
                           Hooks hooks)
    : ledger_(ledger), ledger_mutex_(ledger_mutex), log_(log), hooks_(std::move(hooks)) {}

Answer ChangeCommit::commit(const ChangeRequest& request) {
  Waiting own{&request};
  std::unique_lock lock(queue_mutex_);
  queue_.push_back(&own);
  while (!own.answer) {
    turn_.wait(lock, [&] { return own.answer || !writing_; });
    if (own.answer) break;
    writing_ = true;
    const auto last =
        queue_.begin() + static_cast<std::ptrdiff_t>(std::min(queue_.size(), kBatchMax));
    const std::vector<Waiting*> batch(queue_.begin(), last);
    queue_.erase(queue_.begin(), last);
    lock.unlock();
    write(batch);
    lock.lock();
    writing_ = false;
    turn_.notify_all();
  }
  return std::move(*own.answer);
}

ChangeLedger::Verdict ChangeCommit::rehearse(const ChangeRequest& request) const {
  hooks_.observe();
  auto verdict = ledger_.propose(request, {}, margin_.spare_steps());
  if (std::holds_alternative<ChangeLedger::Replay>(verdict)) return verdict;
  if (auto refusal = hooks_.refused_by_state()) return std::move(*refusal);
  return verdict;
}

void ChangeCommit::between_batches(const std::function<void()>& action) {
  std::unique_lock lock(queue_mutex_);
  turn_.wait(lock, [&] { return !writing_; });
  writing_ = true;
  lock.unlock();
  action();
  lock.lock();
  writing_ = false;
  turn_.notify_all();
}

void ChangeCommit::write(const std::vector<Waiting*>& waiting) {
  std::vector<const ChangeRequest*> requests;
  for (const Waiting* one : waiting) requests.push_back(one->request);
  std::vector<Answer> answers;
  while (!try_write(requests, answers)) {
    // Steps have passed the batch. Each attempt spares twice as many, so it ends.
  }
  hooks_.batch_written();
  const std::lock_guard lock(queue_mutex_);
  for (size_t i = 0; i < waiting.size(); ++i) waiting[i]->answer = std::move(answers[i]);
}

bool ChangeCommit::try_write(const std::vector<const ChangeRequest*>& requests,
                             std::vector<Answer>& answers) {
  Staged staged = stage(requests);
  answers = std::move(staged.batch.answers);
  if (staged.batch.staged.empty()) return true;
  try {
    log_.append(staged.batch.staged, staged.groups);
    if (publish(staged.batch)) return true;
    log_.take_back();
    return false;
  } catch (const IoError& error) {
    const Refusal refusal = log_write_failed(error);
    for (Answer& answer : answers) {
      if (rests_on_staged(answer, staged.revision_before)) answer = refusal;
    }
    return true;
  }
}

ChangeCommit::Staged ChangeCommit::stage(const std::vector<const ChangeRequest*>& requests) {
  const std::lock_guard lock(ledger_mutex_);
  hooks_.observe();
  Staged staged{changes::stage(ledger_, requests, margin_.spare_steps()), ledger_.groups(),
                ledger_.newest_revision()};
  if (const auto refusal = hooks_.refused_by_state()) {
    staged.batch.staged.clear();
    for (Answer& answer : staged.batch.answers) {
      if (!repeats_known(answer, staged.revision_before)) answer = *refusal;
    }
  }
  return staged;
}

bool ChangeCommit::publish(ChangeBatch& batch) {
  const std::lock_guard lock(ledger_mutex_);
  const int64_t steps_passed = ledger_.current_step() - batch.staged_in_step;
  const int64_t first = ledger_.newest_revision() + 1;
  if (!changes::publish(ledger_, batch)) {
    margin_.missed(steps_passed);
    return false;
  }
  margin_.published(steps_passed);
  for (int64_t revision = first; revision <= ledger_.newest_revision(); ++revision)
    hooks_.published(revision);
  return true;
}

}  // namespace fusedbun::changes

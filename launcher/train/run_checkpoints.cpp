#include "fusedbun/launcher/train/run_checkpoints.h"

#include "fusedbun/dist/job/job.h"

namespace fusedbun::train {

RunCheckpoints::RunCheckpoints(Stepper& stepper, Job& job, const CheckpointEvery& every,
                               RunValues values, int64_t batch, int64_t first_step)
    : stepper_(stepper),
      job_(job),
      schedule_(every, first_step),
      values_(std::move(values)),
      batch_(batch),
      steps_done_(first_step) {}

void RunCheckpoints::after_step(int64_t steps_done, bool time) {
  steps_done_ = steps_done;
  if (schedule_.is_due(steps_done, time)) save(steps_done);
}

void RunCheckpoints::save_requested(int64_t steps_done) {
  steps_done_ = steps_done;
  save(steps_done);
}

void RunCheckpoints::before_leaving(int64_t steps_done) {
  const plan::Phase before = job_.enter(plan::Phase::save);
  const auto is_saved = [&] { return job_.checkpointer().status().durable == steps_done; };
  job_.checkpointer().wait();  // the newest may prove not to be durable
  if (!is_saved()) {
    save(steps_done);
    job_.checkpointer().wait();
  }
  job_.enter(before);
}

bool RunCheckpoints::save(int64_t steps_done) {
  RunValues values = values_;
  add_position(values, steps_done, batch_, first_validation_loss_);
  add_validations(values, validations_);
  if (stepper_.save(values) == SaveStart::under_way) return false;
  schedule_.saved(steps_done, seconds());
  return true;
}

}  // namespace fusedbun::train

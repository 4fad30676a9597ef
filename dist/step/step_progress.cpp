#include "fusedbun/dist/step/step_progress.h"

namespace fusedbun {

void StepProgress::enter(plan::Phase phase, int bucket) {
  board_.put({.job_step = model_.job_step, .phase = phase, .bucket = bucket});
  if (trace_ != nullptr) trace_->enter(board_.position());
}

void StepProgress::wait(InFlight& collective, plan::Phase phase, int bucket) {
  if (!collective.work.pending()) return;
  enter(phase, bucket);
  if (trace_ == nullptr || model_.on_gpu()) return wait_for(collective.work, model_.device);
  trace_->add({.track = StepTrace::Track::wire,
               .name = plan::name_of(phase),
               .bucket = bucket,
               .job_step = model_.job_step,
               .begin = collective.started_at,
               .end = collective.work.wait()});
}

}  // namespace fusedbun

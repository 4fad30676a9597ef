#include "fusedbun/dist/step/step_trace.h"

namespace fusedbun {
namespace {

constexpr size_t kSpansMax = 1'000'000;

}  // namespace

void StepTrace::enter(const plan::RankPosition& position) {
  finish();
  phase_ = {.name = plan::name_of(position.phase),
            .bucket = position.bucket,
            .job_step = position.job_step,
            .begin = Clock::now(),
            .end = {}};
  under_way_ = true;
}

void StepTrace::add(const Span& span) {
  if (spans_.size() < kSpansMax) {
    spans_.push_back(span);
  } else {
    complete_ = false;
  }
}

void StepTrace::finish() {
  if (!under_way_) return;
  under_way_ = false;
  phase_.end = Clock::now();
  add(phase_);
}

}  // namespace fusedbun

#include "fusedbun/launcher/train/loss_scale.h"

#include <algorithm>
#include <limits>

#include "fusedbun/core/error.h"

namespace fusedbun::train {

LossScale::LossScale(const LossScaleRules& rules, int64_t first_step)
    : LossScale(rules, first_step, {.scale = rules.initial}) {}

LossScale::LossScale(const LossScaleRules& rules, int64_t first_step, const LossScaleState& saved)
    : rules_(rules),
      state_(saved),
      next_step_(first_step),
      first_open_(first_step - std::ssize(saved.told)) {
  apply_due();
}

double LossScale::begin_step() {
  const int64_t told_before = first_open_ + std::ssize(state_.told);
  FUSEDBUN_ASSERT(told_before + rules_.delay >= next_step_,
                  "a step begins before it is known what became of those that decide its scale");
  begun_.push_back(state_.scale);
  ++next_step_;
  const double scale = state_.scale;
  apply_due();
  return scale;
}

void LossScale::tell(bool skipped) {
  FUSEDBUN_ASSERT(!begun_.empty(), "each step is told of once, after it has begun");
  state_.told.push_back({begun_.front(), skipped});
  begun_.pop_front();
  apply_due();
}

LossScaleState LossScale::state() const {
  FUSEDBUN_ASSERT(begun_.empty(), "a state is taken when it is known what became of each step");
  return state_;
}

// The outcome of step s has its effect on the scale of step s + 1 + delay.
void LossScale::apply_due() {
  while (!state_.told.empty() && first_open_ + rules_.delay < next_step_) {
    apply(state_.told.front());
    state_.told.erase(state_.told.begin());
    ++first_open_;
  }
}

void LossScale::apply(const LossScaleState::Told& outcome) {
  double& scale = state_.scale;
  if (outcome.skipped) {
    ++state_.skipped_in_a_row;
    state_.good_steps = 0;
    // A larger scale than now has been lowered for an earlier step already.
    if (outcome.scale <= scale) scale = std::max(rules_.minimum, outcome.scale * rules_.backoff);
    return;
  }
  state_.skipped_in_a_row = 0;
  if (outcome.scale != scale) return;
  if (++state_.good_steps < rules_.growth_interval) return;
  state_.good_steps = 0;
  const double larger = scale * rules_.growth;
  if (larger <= std::numeric_limits<float>::max()) scale = larger;
}

}  // namespace fusedbun::train

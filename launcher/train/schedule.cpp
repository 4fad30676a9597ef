#include "fusedbun/launcher/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fusedbun::train {

double learning_rate(const Schedule& schedule, int64_t job_step) {
  if (job_step < schedule.warmup_steps) {
    return schedule.peak * static_cast<double>(job_step + 1) /
           static_cast<double>(schedule.warmup_steps + 1);
  }
  const auto decaying_steps =
      static_cast<double>(std::max<int64_t>(1, schedule.total_steps - schedule.warmup_steps));
  const double done =
      std::min(1.0, static_cast<double>(job_step - schedule.warmup_steps) / decaying_steps);
  const double cosine = (1 + std::cos(std::numbers::pi * done)) / 2;
  return schedule.peak * (schedule.floor_fraction + (1 - schedule.floor_fraction) * cosine);
}

}  // namespace fusedbun::train

#pragma once
// The learning rate of a job step: linear warm-up to the peak, then a cosine down to a floor (Loshchilov, Hutter 2016).
//
// Thread safety: pure function.
#include <cstdint>

namespace fusedbun::train {

struct Schedule {
  double peak = 0;
  int64_t warmup_steps = 0;  ///< steps below the peak; the first has peak / (warmup_steps + 1)
  int64_t total_steps = 1;
  double floor_fraction = 0.1;  ///< of the peak, reached at the end
};

/// `job_step` counts from 0. After the last step it stays at the floor.
double learning_rate(const Schedule& schedule, int64_t job_step);

}  // namespace fusedbun::train

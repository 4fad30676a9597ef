#include "fusedbun/core/step_scalars.h"

#include <algorithm>
#include <cmath>

#include "fusedbun/core/error.h"
#include "fusedbun/core/stochastic_rounding.h"

namespace fusedbun {
StepScalars step_scalars(const Options& options, int64_t t, double parameter_rms) {
  FUSEDBUN_ASSERT(t >= 1, "a step is counted before its scalars are asked for");
  const auto count = static_cast<double>(t);
  StepScalars scalars;
  scalars.lr = options.lr;
  scalars.eps = options.eps;
  const double beta =
      options.decay == Decay::ema ? options.beta_decay : 1 - std::pow(count, -options.beta_decay);
  scalars.beta = std::min(beta, options.beta_cap);
  scalars.momentum_beta = options.momentum_beta;
  if (options.bias_correction && options.decay == Decay::ema) {
    scalars.second_moment_correction = 1 - std::pow(scalars.beta, count);
  }
  if (options.bias_correction && options.momentum == Momentum::ema) {
    scalars.momentum_correction = 1 - std::pow(options.momentum_beta, count);
  }
  if (options.Lambda != 0) scalars.keep = 1 - options.lr * options.Lambda;
  if (options.scale_by_parameter_rms) {
    // Written so that a NaN stays one.
    scalars.parameter_scale =
        parameter_rms <= kSmallestParameterScale ? kSmallestParameterScale : parameter_rms;
  }
  scalars.step_seed = step_seed(t);
  scalars.centralize = options.centralize;
  scalars.use_rms = options.use_rms;
  return scalars;
}

}  // namespace fusedbun

#pragma once
// What one step of one parameter needs beside its tensors: the options evaluated at that parameter's step count t.
// All arithmetic on options happens here, in double, once per parameter and step; the passes only read it.
//
// Thread safety: values.
#include <cstdint>

#include "fusedbun/core/options.h"

namespace fusedbun {

/// parameter_scale is at least this: parameters that start at zero must be able to leave it.
constexpr double kSmallestParameterScale = 1e-3;

struct StepScalars {
  double lr = 0;
  double eps = 0;
  double beta = 0;                      ///< beta_t, the decay of the second moment at this t
  double momentum_beta = 0;             ///< b; 0: no momentum
  double second_moment_correction = 1;  ///< v is divided by this (1 - beta_decay^t, or 1)
  double momentum_correction = 1;       ///< what M returns is divided by this (1 - b^t, or 1)
  double keep = 1;              ///< p is multiplied by this before the step (1 - lr·Lambda)
  double parameter_scale = 1;   ///< u is multiplied by this (max(rms(p), 1e-3), or 1)
  double gradient_divisor = 1;  ///< the summed gradient is divided by this, correctly rounded
  double gradient_scale = 1;    ///< then multiplied by this (the clip factor; 1: not clipped)
  uint32_t step_seed = 0;       ///< of this t, for stochastic rounding
  bool centralize = false;
  bool use_rms = false;
};

/// Evaluates `options` at step count `t` >= 1. `parameter_rms` is read only with scale_by_parameter_rms. Divisor and
/// scale of the gradient stay 1 and are the caller's to set.
StepScalars step_scalars(const Options& options, int64_t t, double parameter_rms);

}  // namespace fusedbun

#pragma once
// The variants of the CPU's fused pass. Each is step_cpu_pass.inc compiled for one instruction set, in a namespace of
// its own; it includes nothing that could leave code of a wide instruction set behind in a function that other files
// share.
//
// Thread safety: as step_cpu.h.
#include <cstdint>

#include "fusedbun/core/fused_pass.h"

namespace fusedbun::cpu {

/// What a variant offers. `parameter_sum_of_squares` may be null.
#define FUSEDBUN_DECLARE_VARIANT(set)                                                             \
  namespace set {                                                                                 \
  void run_pass(const fused::PassArguments<float>& arguments, double* parameter_sum_of_squares);  \
  void run_pass(const fused::PassArguments<double>& arguments, double* parameter_sum_of_squares); \
  bool squares_are_finite(const float* values, int64_t n);                                        \
  bool squares_are_finite(const double* values, int64_t n);                                       \
  double sum_of_squares(const float* values, int64_t n);                                          \
  double sum_of_squares(const double* values, int64_t n);                                         \
  }
FUSEDBUN_DECLARE_VARIANT(baseline)
FUSEDBUN_DECLARE_VARIANT(avx2)
FUSEDBUN_DECLARE_VARIANT(avx512)
#undef FUSEDBUN_DECLARE_VARIANT

}  // namespace fusedbun::cpu

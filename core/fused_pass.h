#pragma once
// One fused pass over the rows of a segment, worked out: every invariant of its inner loop, once per call and already
// of type T. Shared by the CPU's and the GPU's pass, private to step_cpu and step_cuda.
//
// Thread safety: values.
#include <cstdint>

#include "fusedbun/core/fused_step.h"

namespace fusedbun::fused {

/// What one pass over the rows does.
enum class PassKind {
  mean,        ///< local update, P from r and the column shares; row and column sums
  sm3,         ///< local update, P from r and c; row and column maxima
  full,        ///< update with the stored element's own second moment
  statistics,  ///< column sums of the squares, nothing else (mean_col, global)
  columns,     ///< update with one denominator per column (mean_col, global)
};

enum class MomentumKind { none, of_update, of_gradient };

template <class T>
struct PassArguments {
  T* parameter;
  uint16_t* rounded;
  const void* gradient;
  const void* const* more_gradients;
  int more_gradient_count;
  ElementType gradient_type;
  void* momentum;
  T* full;
  T* row;
  const T* column_values;  ///< mean: c_j / mean(c); sm3: c_j; columns: sqrt(v_j) + eps, v corrected
  double* column_sums;
  T* column_maxima;
  int64_t rows;
  int64_t columns;
  /// Elements of the segment before the pass's first row: the [rows, m] pointers are the segment's (CPU only).
  int64_t first_element;

  PassKind kind;
  MomentumKind momentum_kind;
  bool momentum_is_bf16;
  bool centralize;
  bool masked;
  bool held;
  bool use_rms;

  T gradient_divisor;
  T gradient_inverse;  ///< 1 / divisor where that is exact (powers of two): a product with the same bits; else 0
  T gradient_scale;
  T eps;
  T beta;
  T beta_rest;            ///< 1 - beta
  T second_moment_scale;  ///< 1 / second_moment_correction
  T momentum_beta;
  T momentum_rest;   ///< weight of x in the momentum buffer: 1 - b, or 1
  T momentum_scale;  ///< of_gradient: 1 / momentum_correction
  T keep;
  T step;  ///< p -= step·u
  double row_beta;
};

/// What begin_step and finish_step run on `step`; column_values are the caller's to work out and to set.
template <class T>
PassArguments<T> begin_pass(const FusedStep<T>& step);
template <class T>
PassArguments<T> finish_pass(const FusedStep<T>& step);

}  // namespace fusedbun::fused

#pragma once
// What the fused steps (step_cpu, step_cuda) are given: one segment for one step, as plain pointers.
//
// Thread safety: values; the memory is the caller's.
#include <cstdint>
#include <type_traits>

#include "fusedbun/core/element_type.h"
#include "fusedbun/core/options.h"
#include "fusedbun/core/row_range.h"
#include "fusedbun/core/step_scalars.h"

namespace fusedbun {

/// True if the fused steps cover these options: the five presets, with everything but their structure free to choose.
///   accumulator mean or sm3, denominator local, momentum (if any) of the update
///   accumulator full, either denominator, momentum of either
///   accumulator mean_col, denominator global, mask zero or off, momentum (if any) of the update
/// all of them without prepare_hessian.
bool has_fused_step(const Options& options);

/// One segment for one step, T = float or double. Pointers that the options do not need stay null. What the parts of a
/// step do is said in segment_step.h.
template <class T>
struct FusedStep {
  T* parameter = nullptr;  ///< [rows, m]
  /// The bfloat16 parameter [rows, m] of which `parameter` is the master. Read first: an element that is not its master's
  /// rounding was written by somebody else, and the master takes its value. Then gets the new one, rounded to nearest even.
  uint16_t* rounded = nullptr;
  /// [rows, m] of gradient_type: summed over ranks, or the first of several to add up; only read.
  const void* gradient = nullptr;
  /// Added to it in this order (CPU only): the ranks' gradients, read where each rank wrote them.
  const void* const* more_gradients = nullptr;
  int more_gradient_count = 0;
  /// Of all gradients: that of T, or for float bf16 or f16 (CPU only), which are widened before they are added.
  ElementType gradient_type = std::is_same_v<T, double> ? ElementType::f64 : ElementType::f32;
  /// [rows, m] of T, or of bfloat16 with MomentumDtype::bf16; null: momentum_beta = 0.
  void* momentum = nullptr;
  T* full = nullptr;              ///< [rows, m]
  T* row = nullptr;               ///< [rows]
  const T* col = nullptr;         ///< [m]
  double* column_sums = nullptr;  ///< [m], added to (mean, mean_col)
  /// [m], maxima are taken into it (sm3); never negative, NaN without sign.
  T* column_maxima = nullptr;
  RowRange range;
  StepScalars scalars;
  Structure structure;
};

}  // namespace fusedbun

#pragma once
// What a fused pass (step_cpu, step_cuda) is given: one matrix's rows for one part of a step, as plain pointers, and every
// invariant of its inner loop, worked out once and already of type T.
//
// Thread safety: values; the memory is the caller's.
#include <cstdint>

#include "fusedbun/core/element_type.h"
#include "fusedbun/core/options.h"
#include "fusedbun/core/row_range.h"
#include "fusedbun/core/step_scalars.h"
#include "fusedbun/core/sum_order.h"

namespace fusedbun {

/// True if a fused CPU pass covers this structure; hyperparameters may have any value.
///   accumulator mean or sm3, denominator local, momentum (if any) of the update
///   accumulator full, either denominator, momentum of either
///   accumulator mean_col, denominator global, mask zero or off, momentum (if any) of the update
/// all of them without prepare_hessian, or with it and hessian_source same or raw.
bool has_fused_step(const Options& options);
/// The same for the CUDA pass: without prepare_hessian.
bool has_fused_cuda_step(const Options& options);

}  // namespace fusedbun

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

/// One second moment; pointers that the options do not need are null.
template <class T>
struct MomentMemory {
  T* full = nullptr;       ///< [rows, m]
  T* row = nullptr;        ///< [rows]
  const T* col = nullptr;  ///< [m]
  /// Worked out from `col` before a pass; mean: c_j / mean(c); sm3: c_j; columns: sqrt(v_j) + eps, v corrected.
  const T* column_values = nullptr;
  double* column_sums = nullptr;  ///< [m], added to (mean, mean_col)
  T* column_maxima =
      nullptr;  ///< [m], maxima are taken into it (sm3); never negative, NaN without sign
};

/// The factors of a step, already of type T.
template <class T>
struct PassScalars {
  T gradient_divisor = 1;
  T gradient_inverse =
      0;  ///< 1 / divisor where that is exact (powers of two): a product with the same bits; else 0
  T gradient_scale = 1;
  T eps = 0;
  T beta = 0;
  T beta_rest = 0;            ///< 1 - beta
  T second_moment_scale = 1;  ///< 1 / second_moment_correction
  T momentum_beta = 0;
  T momentum_rest = 0;   ///< weight of x in the momentum buffer: 1 - b, or 1
  T momentum_scale = 1;  ///< of_gradient: 1 / momentum_correction
  T keep = 1;
  T step = 0;  ///< p -= step·u
  double row_beta = 0;
  uint32_t step_seed = 0;  ///< of stochastic rounding
};

/// What the structure of the options makes of these rows.
struct PassRules {
  PassKind kind = PassKind::full;
  MomentumKind momentum_kind = MomentumKind::none;
  bool momentum_is_bf16 = false;
  bool centralize = false;
  bool masked = false;
  bool held = false;
  bool use_rms = false;
  bool has_hessian = false;
  bool hessian_of_raw = false;  ///< it takes in the gradient before momentum and mask, not after
  LowPrecision low_precision =
      LowPrecision::master;  ///< read where there is a low_precision_parameter
};

/// Rows and columns of the matrix that is passed over.
struct PassShape {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t elements = 0;            ///< rows·columns, or fewer: then the last row is shorter
  int64_t first_of_parameter = 0;  ///< elements of the whole parameter before these
};

template <class T>
struct PassArguments : PassScalars<T>, PassRules, PassShape {
  T* parameter = nullptr;  ///< [rows, m]; null: low_precision_parameter is all there is
  /// The bfloat16 parameter [rows, m].
  ///   master      `parameter` is its master. Read first: an element that is not its master's rounding was written by the program, and
  ///               the master takes its value. Then gets the new one, rounded to nearest even
  ///   remainder   it and `remainder` are the master's upper and lower half; half units round up, so that each half can be told apart
  ///   stochastic  it is rounded stochastically
  uint16_t* low_precision_parameter = nullptr;
  uint16_t* remainder = nullptr;  ///< [rows, m]
  uint32_t rounding_seed = 0;     ///< stochastic_rounding.h
  /// The gradient's summands in the order in which they are added, [rows, m] each; only read. On a GPU there is one.
  const void* const* gradients = nullptr;
  int gradient_count = 0;
  const void* gradient = nullptr;  ///< the first of them
  ElementType gradient_type = sizeof(T) == sizeof(double) ? ElementType::f64 : ElementType::f32;
  /// [rows, m] of T, or of bfloat16 with MomentumDtype::bf16; null: momentum_beta = 0.
  void* momentum = nullptr;
  MomentMemory<T> moment;   ///< exp_avg_sq
  MomentMemory<T> hessian;  ///< exp_hessian, which then normalises in its place (CPU only)
  /// [rows] the sum of squares of each row's new parameters; null: not wanted.
  double* row_squares = nullptr;

  /// Elements of the matrix before the pass's first row: the [rows, m] pointers stay the matrix's (CPU only).
  int64_t first_element = 0;

  int64_t columns_of(int64_t row) const {
    return elements - row * columns < columns ? elements - row * columns : columns;
  }
};

/// The arguments of the part of a step that begins (or finishes) it, without the pointers, which are the caller's to set.
/// `has_momentum`: a momentum buffer is stored.
template <class T>
PassArguments<T> begin_arguments(const RowRange& range, const StepScalars& scalars,
                                 const Structure& structure, bool has_momentum);
template <class T>
PassArguments<T> finish_arguments(const RowRange& range, const StepScalars& scalars,
                                  const Structure& structure, bool has_momentum);

}  // namespace fusedbun::fused

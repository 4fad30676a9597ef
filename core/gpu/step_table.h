#pragma once
// StepTable: what the kernels of a step read from a GPU's memory, so that a few launches step all parameters of a bucket, or of a
// model. Built by the host once (device_step.h), because addresses, shapes and rules stay; what changes from step to step is
// StepInputs, and what only the device knows (skip? clip?) is StepControl.
//
// The work is cut as sum_order.h says: a tile is a band of rows by a block of columns. Tiles leave partial sums in scratch memory;
// `collect` adds those up in the one fixed order. Blocks of threads never wait for one another.
//
// Thread safety: values; the memory is the caller's.
#include <cstdint>

#include "fusedbun/core/fused_pass.h"
#include "fusedbun/core/loss_scale.h"

namespace fusedbun::device {

/// The statistics of one whole matrix, whose rows may lie in several segments; also what is known of a parameter without any.
template <class T>
struct MatrixEntry {
  int64_t columns = 0;
  double rows_total = 0;                         ///< n of the matrix, on all ranks
  fused::PassKind kind = fused::PassKind::full;  ///< its segments'
  T* col = nullptr;                              ///< [m] of the state; null: no column statistics
  T* values = nullptr;  ///< [m] mean: c_j / mean(c); columns: sqrt(v_j) + eps; else null
  /// [m] this step's column sums, or its maxima (sm3: not negative, NaN without sign), in float64; taken into `col` by `absorb`.
  double* totals = nullptr;
  /// Of the parameter's values, on all ranks: before this step, and of its new values. Null unless it is scaled by their RMS; of a stack
  /// the first matrix has them.
  double* squares = nullptr;
  double* new_squares = nullptr;
};

/// What `collect` has left for `absorb`.
struct Pending {
  double beta = -1;     ///< of the step whose totals these are; negative: none
  int32_t squares = 0;  ///< 1: new_squares are those of the whole step
};

/// Rows of one matrix that are stepped together. Its kind is mean, sm3, full, or columns, whose `begin` is the statistics pass.
template <class T>
struct SegmentEntry : fused::PassRules, fused::PassShape {
  /// As in fused_pass.h: what is stepped, the bfloat16 parameter, and what it has beyond its bits.
  T* parameter = nullptr;
  uint16_t* low_precision_parameter = nullptr;
  uint16_t* remainder = nullptr;
  void* momentum = nullptr;          ///< [rows, m] of T or bfloat16; null: none
  T* full = nullptr;                 ///< [rows, m]
  T* row = nullptr;                  ///< [rows]
  const T* column_values = nullptr;  ///< [m] MatrixEntry::values, or col for sm3
  double* totals = nullptr;          ///< the matrix's
  const double* squares = nullptr;   ///< the parameter's; null: steps are not scaled by it
  double* new_squares = nullptr;
  double parameter_elements = 0;  ///< of the whole parameter
  int32_t matrix = 0;
  int32_t bands = 0;
  uint32_t parameter_seed = 0;  ///< of stochastic rounding
  bool in_fours =
      false;  ///< every row starts where four elements can be moved at once, if its gradient does

  // Scratch, alive from the update to `collect`.
  double* band_columns = nullptr;  ///< [bands, m]
  double* block_gradients =
      nullptr;  ///< [ceil(m / 1024), rows] sums of the gradient; centred rows alone
  double* block_rows = nullptr;  ///< the same of what the row statistic takes in: sums, or maxima
  double* block_squares = nullptr;  ///< the same of the new parameters' squares
};

/// A band of rows by a block of 1024 columns.
struct Tile {
  int64_t first_row;
  int64_t end_row;
  int32_t segment;
  int32_t band;
  int32_t block;
};

/// What one block of threads adds up in `collect`.
struct CollectTile {
  enum class What : int32_t { columns, rows, squares };
  int32_t segment;
  What what;
  int32_t
      index;  ///< which kCollectThreads columns or rows; squares: how many segments from this one on are the parameter's
};
constexpr int kCollectThreads = 128;

/// The factors of one parameter's step t, evaluated by the host, because a GPU's pow is another one.
template <class T>
struct StepFactors {
  fused::PassScalars<T> scalars;  ///< but divisor, clip and step, which the device completes
  double lr = 0;
  double momentum_correction = 1;  ///< of the update's momentum
};

/// Parameters whose steps the host does not know to be done: it counts on no step being skipped, and evaluates the factors for as many
/// earlier t as steps may be under way.
constexpr int kStepsUnderWay = 4;

/// What a step is told by the host.
struct StepInputs {
  double divisor = 1;  ///< of the summed gradient: ranks × passes × what the host scaled by
  int64_t skipped_as_known = 0;  ///< skipped steps that t of `factors` takes into account
  double max_norm = 0;           ///< of the averaged gradient; 0: it is not clipped
  double norm_divisor = 1;  ///< of the gradient whose norm clips: this step's, or the one before's
  int32_t skips_nonfinite = 1;     ///< some group's nonfinite is skip
  int32_t scales_loss = 0;         ///< 1: losses were multiplied by StepControl::loss_scale
  LossScaleRules loss_scale = {};  ///< by which it changes then
};

/// [rows, m] of a segment, as the host finds it in each step.
struct Gradient {
  const void* elements = nullptr;
  ElementType type = ElementType::f32;
  bool operator==(const Gradient&) const = default;
};

/// What the device decides for itself.
struct StepControl {
  double divisor = 1;         ///< of the summed gradient, with the loss scale
  double clip = 1;            ///< factor of the averaged gradient
  int64_t skipped = 0;        ///< steps so far
  int32_t skip = 0;           ///< 1: this step changes nothing
  int32_t nonfinite = 0;      ///< a gradient of this rank has a NaN or inf in g·g
  LossScaleState loss_scale;  ///< of the next step, once this one is decided
};

/// One table as a kernel is given it.
template <class T>
struct StepTable {
  const MatrixEntry<T>* matrices = nullptr;
  Pending* pending = nullptr;  ///< [matrix]
  const SegmentEntry<T>* segments = nullptr;
  const Tile* tiles = nullptr;
  const CollectTile* collect_tiles = nullptr;
  int32_t matrix_count = 0;
  int32_t tile_count = 0;
  int32_t collect_count = 0;

  const StepInputs* inputs = nullptr;
  const Gradient* gradients = nullptr;      ///< [segment]
  const StepFactors<T>* factors = nullptr;  ///< sets of kStepsUnderWay: t, t - 1, ...
  const int32_t* factors_of = nullptr;  ///< [matrix] its first set's index; negative: not stepped
  const StepControl* control = nullptr;
};

}  // namespace fusedbun::device

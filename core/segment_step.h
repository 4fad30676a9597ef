#pragma once
// One optimizer step on a segment (some rows of one parameter), in LibTorch tensors: the one door to the fused passes
// (step_cpu) and the reference (step_reference), for the one-process optimizer and the sharded one alike.
//
// A step has three parts, because column statistics belong to the whole matrix while the segment may be a part of it:
//   begin_step      reads the gradient; with denominator = local (and wherever no columns are kept) it does the whole
//                   update, with global only the statistics.
//                   Leaves the segment's column partials: sums (float64) or, for sm3, maxima.
//   absorb_columns  takes the partials of *all* rows of the matrix (added up, or their maxima) into the stored columns.
//   finish_step     with denominator = global the update; with local nothing.
// One process calls begin, absorb, finish in a row. A sharded caller reduces the partials over ranks before `absorb`:
// with local at any time before the segment's next step, with global before `finish`.
//
// Invariants: 1. `t`, schedules and averaging are the caller's, through StepScalars. 2. A segment without a gradient
// is not stepped at all. 3. The result for a row does not depend on which other rows are in the segment.
//
// Thread safety: distinct segments may be stepped at the same time.
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

#include "fusedbun/core/element_type.h"
#include "fusedbun/core/options.h"
#include "fusedbun/core/row_range.h"
#include "fusedbun/core/step_scalars.h"

namespace fusedbun {

/// The stored second moment of a segment; undefined tensors are not stored with these options.
struct SecondMoment {
  torch::Tensor full;  ///< [rows, m]: accumulator full, and every vector
  torch::Tensor row;   ///< [rows]: mean, sm3
  /// [k·m], k = range.matrices(): mean, mean_col, sm3; of whole matrices, the same on every rank that holds rows.
  torch::Tensor col;
};

/// Everything the optimizer keeps about one segment. Types: that of the arithmetic (float64 for float64 parameters,
/// else float32), momentum bfloat16 with MomentumDtype::bf16.
struct SegmentState {
  torch::Tensor momentum_buffer;  ///< [rows, m]; undefined with momentum_beta = 0
  SecondMoment exp_avg_sq;
  SecondMoment exp_hessian;  ///< only with prepare_hessian
  torch::Tensor
      master;  ///< [rows, m] float32 copy of bfloat16 or float16 parameters; else undefined
  torch::Tensor
      remainder;  ///< [rows, m] int16, with LowPrecision::remainder: what the master has beyond the parameter
};

/// Calls visit(name, tensor) for every tensor that some options store; undefined ones are not stored with these options.
template <class Segment, class Visit>
void visit_tensors(Segment& segment, Visit&& visit) {
  visit("momentum_buffer", segment.momentum_buffer);
  visit("exp_avg_sq", segment.exp_avg_sq.full);
  visit("exp_avg_sq_row", segment.exp_avg_sq.row);
  visit("exp_avg_sq_col", segment.exp_avg_sq.col);
  visit("exp_hessian", segment.exp_hessian.full);
  visit("exp_hessian_row", segment.exp_hessian.row);
  visit("exp_hessian_col", segment.exp_hessian.col);
  visit("master", segment.master);
  visit("remainder", segment.remainder);
}

/// The type in which a parameter of type `parameter` is stepped: float64 for itself, float32 for the rest.
/// Throws ConfigError for types that are not floating point.
torch::ScalarType arithmetic_type(torch::ScalarType parameter);
/// The same type by another name: float32, float64, bfloat16 or float16.
ElementType element_type(torch::ScalarType type);
/// And back.
torch::ScalarType scalar_type_of(ElementType type);

/// A ParallelFor (cpu_execution.h) on LibTorch's threads, as many as the program set (at::set_num_threads). Each takes the same share of
/// a count in every step, so its pages stay where it runs.
void on_torch_threads(int64_t count, const std::function<void(int64_t)>& task);

/// Throws ConfigError, naming the parameter as `name`, if `low_precision` is not for its type.
void require_low_precision(torch::ScalarType parameter, const Options& options,
                           const std::string& name);

/// State before the first step: all zero, `master` filled from `parameter_rows` ([rows, m]).
SegmentState make_segment_state(const torch::Tensor& parameter_rows, const RowRange& range,
                                const Options& options);

/// Brings the state to the parameter's device and type after they have changed: tensors are converted, a master is made or
/// dropped. The shape stays.
void fit_segment_state(const torch::Tensor& parameter_rows, const Options& options,
                       SegmentState& state);

/// The values that the next step goes on from, as the last one left them: the master, the parameter with its remainder, or the parameter.
torch::Tensor stepped_values(const torch::Tensor& parameter_rows, const SegmentState& state);

/// Takes the parameter ([rows, m]) into its master wherever it is not the master's rounding, that is, wherever somebody
/// else has written it. Every step does that by itself; to be called by who reads `master` between two steps.
void follow_parameter(const torch::Tensor& parameter_rows, SegmentState& state);

/// Views of what belongs to the rows `part` of a segment [rows of `range`]: to step a long segment in parts. The columns of a matrix
/// belong to all of them; a stack is divided between its matrices.
SegmentState state_of_rows(const SegmentState& state, const RowRange& range, const RowRange& part);
/// The same of column entries.
torch::Tensor column_entries_of_rows(const torch::Tensor& entries, const RowRange& range,
                                     const RowRange& part);

/// Bytes of all tensors of the state (t is not counted).
int64_t state_bytes(const SegmentState& state);

/// How many column entries `begin_step` leaves: 0 (vectors, full), m, or 2·m with prepare_hessian (then exp_avg_sq's first);
/// as many for each matrix of a stack, matrix after matrix. A stack (matrix_view = last_two) has all rows of its matrices in the segment,
/// so its partials are the totals and go to absorb_columns without any exchange.
int64_t column_entries(const RowRange& range, const Options& options);

/// The entries of one matrix's exp_avg_sq (which = 0) or exp_hessian (which = 1) among its column entries; undefined stays so.
torch::Tensor column_entries_of(const torch::Tensor& entries, int64_t which, const RowRange& range);

/// True if `begin_step` does the whole update: the denominator needs nothing of other rows.
bool updates_in_begin(const RowRange& range, const Options& options);

/// The sum of squares of `rows` ([rows, m]) in float64, added up as the update under these options adds up its new values. Waits for a
/// GPU.
double sum_of_squares(const torch::Tensor& rows, const RowRange& range, const Options& options);

/// True if the partials are maxima (accumulator sm3), false if sums.
bool columns_are_maxima(const Options& options);

/// One step of one segment. Tensors are views; the step works in place.
struct SegmentStep {
  torch::Tensor parameter;  ///< [rows, m], contiguous, the parameter's own type
  /// The gradient's summands, at least one, added in this order: the sum over ranks, or each rank's gradient where it wrote
  /// it. [rows, m], contiguous, all of one type: the arithmetic's, or bfloat16 or float16 where that is float32. Only read;
  /// on paths that take one gradient begin_step leaves the sum here in their place.
  std::vector<torch::Tensor> gradients;
  /// [rows, m] or undefined (= 0); read only with HessianSource::external.
  torch::Tensor hessian_diagonal;
  RowRange range;
  StepScalars scalars;
  int64_t parameter_index =
      0;  ///< among the optimizer's parameters: what stochastic rounding tells them apart by
  /// [column_entries], zeroed by the caller; begin_step adds to it (sums: float64) or takes maxima into it (sm3:
  /// arithmetic type, never negative, NaN kept). Undefined when column_entries is 0.
  torch::Tensor column_partials;
  /// Sum of the squares of the new parameter values, written by the update when asked for with a pointer (float64).
  double* parameter_sum_of_squares = nullptr;

  /// Kept by begin_step for finish_step (denominator global); the caller leaves it empty.
  torch::Tensor kept_update_input;
};

/// fused_cpu: step_cpu.h. device: device_step.h, of which begin_step and its sisters know nothing: they take the reference there.
/// reference: step_reference.h.
enum class StepPath { fused_cpu, device, reference };

/// Which implementation steps such a segment. Fused passes exist for the presets; other combinations of options take
/// the reference, which is correct and slower.
StepPath step_path(const Options& options, torch::Device device, torch::ScalarType arithmetic);

void begin_step(SegmentStep& step, SegmentState& state, const Options& options);
void absorb_columns(const torch::Tensor& column_totals, const RowRange& range,
                    const StepScalars& scalars, SegmentState& state, const Options& options);
void finish_step(SegmentStep& step, SegmentState& state, const Options& options);

/// For tests: every segment takes the reference while an object of this class lives (process-wide, not nested).
class ForceReference {
 public:
  ForceReference();
  ~ForceReference();
  ForceReference(const ForceReference&) = delete;
};

}  // namespace fusedbun

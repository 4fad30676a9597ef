#pragma once
// ShardUpdate: steps the rows that this rank owns. It holds their state (momentum, second moments, masters), evaluates the
// hyperparameters at each parameter's own step count t, runs core's fused step bucket by bucket, and completes the column
// statistics of matrices whose rows are on several ranks.
//
// One step: begin (parameters followed, t and scalars) -> update_bucket for each bucket, in order -> send_columns ->
// finish_bucket for those that need the columns first (denominator global) -> end. With denominator local the columns
// are reduced while the next backward pass runs; absorb_columns() adds them to the state before the next begin.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "fusedbun/core/loss_scale.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/step/device_update.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/dist/step/sharded_model.h"
#include "fusedbun/dist/step/step_epilogue.h"

namespace fusedbun {

class ShardUpdate {
 public:
  /// What one step multiplies every gradient with, agreed on by all ranks.
  struct GradientScaling {
    double divisor = 1;   ///< of the summed gradient: ranks x passes x loss scale
    double clip = 1;      ///< factor after the division; on a GPU the device finds it
    double max_norm = 0;  ///< of the averaged gradient, which it is clipped to; 0: it is not
    /// On a GPU: of the gradients whose squares it has, this step's or those of the step before.
    double norm_divisor = 1;
    /// On a GPU: by which it changes the loss scale, which it multiplies both divisors with; none: it does neither.
    std::optional<LossScaleRules> loss_scale = {};
  };

  /// `message` carries the columns; all outlive this. `device` is null on CPUs.
  ShardUpdate(ShardedModel& model, StepEpilogue& message, DeviceUpdate* device)
      : model_(model), message_(message), device_(device) {}
  /// Makes the state of the rows that were added to the model.
  void extend();

  /// On a GPU, with options that its kernels take: they step the rows, and decide what is skipped.
  bool steps_on_device() const { return steps_on_device_; }
  /// Steps whose outcome the host hears now (DeviceUpdate::hear); t of what was skipped goes back.
  std::vector<DeviceUpdate::Heard> hear(bool all);
  bool must_hear_before(const std::vector<bool>& used) const {
    return steps_on_device_ && device_->has_open_with_others(used);
  }

  /// Starts a step: reads the parameters as they are now, t of the used ones advances, `lr[group]` is the effective one.
  void begin(const std::vector<bool>& used, const GradientScaling& scaling,
             const std::vector<double>& lr);
  /// Steps this rank's rows of a bucket whose gradients have arrived.
  void update_bucket(int bucket);
  /// Its rows are final only after the columns of all ranks are here (denominator global).
  bool needs_columns_first(int bucket) const;
  /// The columns are here: what finish_bucket needs of them.
  void prepare_finish();
  void finish_bucket(int bucket);
  void send_columns() { message_.send_columns(); }
  void send_squares();
  /// The gradients of a bucket are not needed any more.
  void release_gradients(int bucket);
  /// Every rank's new rows are here: staged parameters are written, and what the step left is remembered.
  void end();
  /// Waits for what the last step sent and takes it in; nothing if it is here already.
  void absorb_columns();

  /// Takes what the program wrote into a parameter since the last step as its values: float32 masters follow where they do not
  /// round to the parameter any more, and the sum of squares is measured anew.
  void follow(int parameter);
  /// The parameter has left its replica: this rank's rows of it go there.
  void copy_into_replica(int parameter);

  void set_hessian_diagonal(const at::Tensor& parameter, at::Tensor diagonal);
  /// The step is over, done or skipped or refused: what was set for it does not hold for the next.
  void drop_hessian_diagonals();
  /// What was set for the current step; undefined: nothing.
  const at::Tensor& hessian_diagonal(int parameter) const { return hessian_diagonals_[parameter]; }

  const std::vector<bool>& used() const { return used_; }
  const std::vector<int64_t>& step_counts() const { return t_; }
  int64_t state_bytes() const;
  std::vector<ShardedFusedbun::OwnedRows> owned_rows();
  /// [parameter] of their values; on a GPU it waits, and those of which this rank has no rows are 0.
  std::vector<double> sums_of_squares();
  /// What `owned_rows` does not reach. A sum that is NaN is not known and added up anew; the parameters have their values.
  void restore(std::vector<int64_t> step_counts, std::vector<double> sums_of_squares);

  /// t, sums of squares and the tensors of this rank's segments. load() throws DataError for a state of other structure.
  void save(torch::serialize::OutputArchive& archive);
  void load(torch::serialize::InputArchive& archive);

 private:
  /// All rows of one parameter that this rank owns.
  struct OwnedState {
    int parameter = 0;
    RowRange range;
    SegmentState state;
    at::Tensor column_partials;   ///< of the current step; undefined: none
    bool awaits_columns = false;  ///< stepped, its columns on their way
  };
  /// Those of them that travel in one bucket: what is stepped at once.
  struct OwnedSegment {
    plan::Segment where;
    size_t rows = 0;            ///< owned_[rows] holds them
    SegmentState state;         ///< views of its state
    SegmentStep step;           ///< the current step, between begin and finish
    double sum_of_squares = 0;  ///< of its new values; scale_by_parameter_rms alone
  };

  /// The sum of squares of a whole parameter's values.
  double measured_squares(int parameter, const at::Tensor& matrix) const;
  void begin_on_device(const GradientScaling& scaling, const std::vector<double>& lr);
  void update_bucket_on_device(int bucket);
  std::vector<Options> options_with(const std::vector<double>& lr) const;
  /// What the device's tables are made of: addresses of the parameters, and rules that may change between two steps.
  std::vector<uint64_t> device_basis() const;
  std::vector<DevicePart> device_parts();
  void know_squares(int parameter, double sum);
  void prepare_scalars(const GradientScaling& scaling, const std::vector<double>& lr);
  void clear_partials();
  void begin_segment(OwnedSegment& segment, int bucket);
  void finish_segment(OwnedSegment& segment);
  at::Tensor make_partials(const OwnedState& owned) const;
  /// Other ranks hold rows of the same matrix, so its column partials must be reduced.
  bool awaits_others(int parameter) const;
  bool is_scaled_by_rms(int parameter) const { return columns_.square_offset[parameter] >= 0; }

  ShardedModel& model_;
  StepEpilogue& message_;
  plan::ColumnLayout columns_;
  std::vector<OwnedState> owned_;                    ///< in the order of buckets
  std::vector<std::vector<OwnedSegment>> segments_;  ///< [bucket]
  std::vector<int64_t> t_;                           ///< [parameter]
  std::vector<double> sum_of_squares_;  ///< [parameter] of its values; scale_by_parameter_rms alone
  std::vector<StepScalars> scalars_;    ///< [parameter] of the current step
  std::vector<bool> used_;              ///< [parameter] in the current or last step
  std::vector<at::Tensor> hessian_diagonals_;  ///< [parameter] for the current step
  bool squares_in_flight_ = false;

  DeviceUpdate* const device_;
  bool steps_on_device_ = false;
  at::Tensor device_squares_;  ///< float64 [parameter], sum_of_squares_ where the device keeps it
  std::vector<uint64_t> device_basis_;
};

}  // namespace fusedbun

#pragma once
// StepEngine: performs one sharded step. What to do when is decided in dist/plan (plan, schedule,
// agreement, header verdict, changes); the arithmetic is core's; this moves tensors between the
// two.
//
// One job step:
//   backward   hooks: add_gradient -> buckets leave
//   step()     settle the previous step's message    header verdict, changes, columns absorbed
//              flush -> agree                        skipped as a whole if a rank saw a NaN
//              begin segments -> gather rows         the update
//              close                                 columns and header leave, the next step's hyperparameters enter
//
// Thread safety: hooks may run on autograd's threads; everything else on one thread.
#include <ATen/core/Tensor.h>
#include <torch/optim/optimizer.h>

#include <atomic>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/plan/agreement.h"
#include "fusedbun/dist/plan/schedule.h"
#include "fusedbun/dist/step/gradient_bucket.h"
#include "fusedbun/dist/step/parameter_matrix.h"
#include "fusedbun/dist/step/position_board.h"
#include "fusedbun/dist/step/registered_parameters.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/dist/step/step_message.h"

namespace fusedbun {

class StepEngine {
 public:
  /// `groups` are the optimizer's own; options are read from them at each step.
  StepEngine(Channels channels, ShardedOptions options,
             std::vector<torch::optim::OptimizerParamGroup>& groups);
  ~StepEngine();

  /// Takes parameters of a new group in. Collective.
  void add_parameters(std::vector<RegisteredParameter> added);
  std::span<const RegisteredParameter> parameters() const { return parameters_; }

  void step();
  void finish();

  void set_control(plan::ControlPort* port);
  void set_hessian_diagonal(const at::Tensor& parameter, at::Tensor diagonal);
  void enter_no_sync() { ++no_sync_depth_; }
  void leave_no_sync();
  void request_leave(plan::LeaveRequest request) noexcept;

  const plan::StepReport& report() const { return report_; }
  plan::LeaveRequest leave_request() const { return leaving_; }
  double max_grad_norm() const { return sharded_.max_grad_norm; }
  int64_t job_step() const { return job_step_; }
  int64_t skipped_steps() const { return skipped_steps_; }
  const plan::ShardPlan& shard_plan() const { return plan_; }
  int64_t state_bytes() const;
  bool shares_memory() const { return shares_memory_; }
  int64_t planned_state_bytes() const;
  std::vector<ShardedFusedbun::OwnedRows> owned_rows();

  void save(torch::serialize::OutputArchive& archive);
  void load(torch::serialize::InputArchive& archive);

 private:
  class GradientHook;

  /// A segment of this rank.
  struct OwnedSegment {
    plan::Segment where;
    SegmentState state;
    at::Tensor partials;          ///< column partials of the step at hand; undefined: none
    bool awaits_columns = false;  ///< split matrix stepped, its columns under way
    SegmentStep step;             ///< the step at hand, between begin and finish
    double sum_of_squares = 0;    ///< of its new values; scale_by_parameter_rms alone
  };

  // Set-up.
  const Options& options_of(int parameter) const;
  std::vector<Options> group_options() const;
  std::vector<std::string> start_lines() const;
  void broadcast_parameters(size_t first);
  /// Memory of the buckets from `first_bucket` on; in a host window if the ranks can share one, then with their
  /// parameters.
  void make_buckets(size_t first_parameter, size_t first_bucket);
  plan::TransportChoice choose_transport(size_t first_parameter) const;
  bool open_window(size_t first_parameter, size_t first_bucket);
  void make_state(size_t first_parameter, size_t first_bucket);
  void say_what_is_slow() const;
  void install_hook(int parameter);

  void require_fit_for_backward(const Options& options) const;

  /// A bucket's collective, from its start to its end.
  struct Travel {
    comm::Work work;
    comm::Clock::time_point sent_at;
  };

  // Gradients: from hooks and from step().
  void on_gradient(int parameter, const at::Tensor& tensor);
  void add_gradient(int parameter, const at::Tensor& gradient);
  void launch(const std::vector<int>& buckets);
  void collect_remaining();

  // One step.
  void perform_step();
  void abandon() noexcept;
  void settle_previous();
  void settle_header();
  /// Brings rank 0's changes up to that revision here; collective. Returns whether there were any.
  bool accept_changes(int64_t newest_revision);
  void absorb_pending_columns();
  plan::Agreement agree();
  plan::Agreement all_used() const;
  double own_sum_of_squares();
  double gradient_divisor() const;
  uint32_t round() const { return static_cast<uint32_t>(job_step_) + 1; }
  /// The update in three parts: before the first bucket, each bucket in order, after the last.
  void begin_update(const plan::Agreement& agreement);
  void update_bucket(int bucket, const std::vector<bool>& used);
  void finish_update(const std::vector<bool>& used);
  /// step_in_backward: bucket `left` has left, so the one before it is stepped.
  void update_behind(int left);
  void count_used(const plan::Agreement& agreement);
  void begin_bucket(int bucket, const std::vector<bool>& used);
  void begin_segment(OwnedSegment& owned, int bucket);
  void note_squares(const OwnedSegment& owned);
  void finish_bucket(int bucket, const std::vector<bool>& used);
  at::Tensor partials_of(const OwnedSegment& owned, int64_t entries);
  /// Other ranks hold rows of the same matrix, so its column partials must be reduced.
  bool awaits_others(int parameter) const;
  bool needs_columns_first(int bucket) const;
  void close_step(const plan::Agreement& agreement);
  void make_report(const plan::Agreement& agreement);
  uint64_t state_digest() const;
  void enter_next_step();
  void release_gradients();
  void enter(plan::Phase phase, int bucket = plan::RankPosition::kNoBucket);
  void wait(comm::Work& work);
  void wait(Travel& travel, plan::Phase phase, int bucket);
  void start_param_sync(int bucket, const std::vector<bool>& used);
  /// Nobody needs the gradients of that bucket any more.
  void release_gradients(int bucket);
  /// Throws if somebody wrote a gradient after it was taken.
  void require_untouched(int parameter) const;

  Channels channels_;
  PositionBoard own_board_;  ///< when the channels bring none
  PositionBoard& board_;
  ShardedOptions sharded_;
  std::vector<torch::optim::OptimizerParamGroup>& groups_;
  at::Device device_;
  int rank_;

  std::vector<RegisteredParameter> parameters_;
  plan::ShardPlan plan_;
  plan::ColumnLayout columns_;
  plan::Schedule schedule_;
  std::vector<ParameterMatrix> matrices_;  ///< [parameter]
  std::vector<int64_t> t_;                 ///< [parameter]
  std::vector<double> sum_of_squares_;  ///< [parameter] of its values; scale_by_parameter_rms alone
  std::vector<StepScalars> scalars_;    ///< [parameter] of the step at hand
  std::vector<bool> stepped_;           ///< [parameter] in the last step that was not skipped
  std::vector<uint32_t> taken_versions_;  ///< [parameter] of its gradient, when it was taken
  bool squares_under_way_ = false;
  std::vector<at::Tensor> hessian_diagonals_;  ///< [parameter] for the step at hand
  std::vector<std::unique_ptr<GradientBucket>> buckets_;
  std::vector<std::vector<OwnedSegment>> owned_;  ///< [bucket]
  std::vector<Travel> reductions_, gathers_;      ///< [bucket]
  int updated_buckets_ = 0;                       ///< of the step at hand
  StepMessage message_;
  bool shares_memory_ = false;  ///< some bucket lies in a host window

  std::mutex gradient_mutex_;    ///< guards what hooks touch
  bool finite_ = true;           ///< all gradients seen here in this step
  at::Tensor device_nonfinite_;  ///< the same on a GPU: > 0 is not finite
  int no_sync_depth_ = 0;
  int accumulated_passes_ = 0;  ///< backward passes under no_sync since the last step

  plan::ControlPort* port_ = nullptr;
  plan::ActiveChanges changes_;
  plan::StepReport report_;
  plan::LeaveRequest leaving_ = plan::LeaveRequest::none;
  std::atomic<uint8_t> leave_requested_{0};
  int64_t job_step_ = 0;
  int64_t skipped_steps_ = 0;
};

}  // namespace fusedbun

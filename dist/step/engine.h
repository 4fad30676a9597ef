#pragma once
// StepEngine: conducts one sharded step. It holds the three parts and decides only their order; what each does is theirs:
//   GradientCollector  which gradients count, and their way into the buckets
//   ShardUpdate        the fused step on this rank's rows
//   StepConsensus      what the ranks agree on and tell one another
// beside them ProgramChanges, which finds out what the program did between two steps.
//
// Thread safety: the collector's hooks may run on autograd's threads; everything else on one thread.
#include <torch/optim/optimizer.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fusedbun/dist/step/gradient_collector.h"
#include "fusedbun/dist/step/loss_scaler.h"
#include "fusedbun/dist/step/program_changes.h"
#include "fusedbun/dist/step/shard_update.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/dist/step/sharded_model.h"
#include "fusedbun/dist/step/step_consensus.h"
#include "fusedbun/dist/step/step_epilogue.h"
#include "fusedbun/dist/step/step_progress.h"

namespace fusedbun {

class StepEngine {
 public:
  /// `groups` are the optimizer's own; options are read from them at each step. Collective.
  StepEngine(Channels channels, ShardedOptions options,
             std::vector<torch::optim::OptimizerParamGroup>& groups);
  ~StepEngine();

  /// Takes in the parameters of new groups, and those that may be unfrozen later. Collective.
  void add_parameters(std::vector<RegisteredParameter> added,
                      std::vector<RegisteredParameter> frozen);
  /// Before a late group is added: all ranks are here.
  void begin_add_group();

  void step(const StepOptions& options);
  void write_parameters(const std::function<void()>& write);
  void finish();
  void settle() {
    guarded([&] { hear(/*all=*/true); });
  }
  std::vector<ShardedFusedbun::StepOutcome> take_outcomes() { return std::exchange(outcomes_, {}); }
  int outcome_delay() const { return update_.steps_on_device() ? DeviceUpdate::kDelay : 0; }

  void enter_no_sync() { collector_.enter_no_sync(); }
  void leave_no_sync() { collector_.leave_no_sync(); }

  std::string problem_of_groups() const { return changes_.problem_of_groups(); }
  const ShardedModel& model() const { return model_; }
  ShardUpdate& update() { return update_; }
  StepConsensus& consensus() { return consensus_; }
  LossScaler& loss_scaler() { return loss_scaler_; }
  const ShardedOptions& options() const { return sharded_; }
  bool shares_memory() const { return shares_memory_; }
  int64_t planned_state_bytes() const;

  ShardedFusedbun::ReplicatedState state_to_save();
  void restore(const ShardedFusedbun::ReplicatedState& state,
               const std::function<void(const ShardedFusedbun::OwnedRows& rows)>& read_rows);
  std::vector<double> sums_of_squares();
  /// With clip_by_previous_norm: of the last step.
  double previous_norm();
  void restore_previous_norm(double norm);
  void save(torch::serialize::OutputArchive& archive);
  void load(torch::serialize::InputArchive& archive);

 private:
  // One step (engine.cpp).
  void perform_step(const StepOptions& options);
  void update_parameters(const std::vector<bool>& used, const ShardUpdate::GradientScaling& scaling,
                         bool is_under_way);
  /// Outcomes of steps that a GPU has done; `all`: of every one, for which the host waits.
  void hear(bool all);
  void finish_previous();
  void on_bucket_full(int bucket);
  void update_previous_bucket(int started);
  void send_dirty_again(const std::vector<bool>& dirty);
  ShardUpdate::GradientScaling scale_gradients(const StepOptions& options);
  /// clip_by_previous_norm: the squares of a bucket whose gradients are here are added to this step's, which clip the next one.
  void add_norm_of(int bucket, double divisor);
  void close_norm(double divisor);
  ShardUpdate::GradientScaling scaling_by_previous_norm() const;
  void drop_gradients();
  void begin_update(const std::vector<bool>& used, const ShardUpdate::GradientScaling& scaling);
  void update_bucket(int bucket);
  void finish_update();
  void start_grad_sync(int bucket);
  void start_param_sync(int bucket);
  void relay_rows(int bucket);
  void finish_param_sync(int bucket);
  void wait_for_gradients(int bucket);
  /// Buckets of a GPU take turns in memory: what others have under way where this one lies is over then.
  void free_slot_of(int bucket);

  // What ranks must do together or not at all (engine_agreement.cpp).
  plan::Agreement agree(const StepOptions& options);
  void agree_on_call(plan::OptimizerCall call);
  /// Gradients of a backward pass that has begun arrive and are dropped.
  void drop_begun_backward();
  void say_where_backward_waits(plan::OptimizerCall call);
  plan::RankFacts facts_of(plan::OptimizerCall call) const;
  [[noreturn]] void refuse(const StepConsensus::Outcome& outcome);
  bool own_device_is_nonfinite();
  /// The gradients of a step that is not done, and what a GPU has found of them, do not count.
  void forget_gradients();
  /// Divides the sum over ranks, without the loss scale.
  double gradient_divisor() const;
  /// The dynamic loss scale, where the host divides by it.
  double scale_on_host() const;
  void adopt_unfrozen();
  void guarded(const std::function<void()>& action);
  void break_off(const std::string& reason) noexcept;
  void say_once(bool& said, const std::string& sentence) const;

  // What the program does to parameters (engine_parameters.cpp).
  void follow_parameters();
  void follow_loaded();
  void take_values_of_rank_zero();
  void return_to_replicas();
  void gather_parameters();
  void broadcast_parameters(size_t first);

  // Before the first step, and for a late group (engine_setup.cpp).
  void require_fit(std::span<const RegisteredParameter> all, size_t first) const;
  std::vector<std::string> start_lines(const plan::ShardPlan& plan,
                                       std::span<const RegisteredParameter> all) const;
  void make_buckets(const plan::TransportChoice& choice, size_t first_parameter,
                    size_t first_bucket);
  plan::TransportChoice choose_transport(std::span<const RegisteredParameter> all,
                                         size_t first) const;
  bool open_window(size_t first_parameter, size_t first_bucket);
  void say_what_is_slow() const;

  ShardedOptions sharded_;
  ShardedModel model_;
  /// Communicators of this optimizer alone, because each has one order of operations: the program's own collectives run on
  /// the channels that it gave, and small messages do not wait behind gradients.
  std::unique_ptr<comm::Communicator> own_gradient_stream_;
  comm::Communicator*
      gradient_stream_;  ///< gradients, rows and columns; on a GPU the channel itself
  std::unique_ptr<comm::Communicator> control_stream_;  ///< agreements, headers, changes
  StepProgress progress_;
  StepEpilogue message_;
  std::unique_ptr<DeviceUpdate> device_;  ///< null on CPUs
  LossScaler loss_scaler_;
  GradientCollector collector_;
  ShardUpdate update_;
  StepConsensus consensus_;
  ProgramChanges changes_;
  ProgramChanges::Events
      writes_in_backward_;             ///< found before the first bucket was stepped in backward
  std::vector<InFlight> param_syncs_;  ///< [bucket]
  std::vector<bool> rows_arrive_;      ///< [bucket] others' rows are under way into it, or in it
  int updated_buckets_ = 0;            ///< of the current step
  void tell(const StepConsensus::StepOutcome& outcome, float loss_scaled_by);

  std::vector<ShardedFusedbun::StepOutcome> outcomes_;  ///< that nobody has taken
  StepConsensus::StepOutcome outcome_;  ///< of the current step, or the last that a GPU has told
  /// clip_by_previous_norm: of the last step, and of the step under way so far on this rank. Where a GPU steps it has both itself.
  struct PreviousNorm {
    double norm = 0;
    double own_squares = 0;
    double divisor = 1;  ///< of the last step's gradients
  };
  PreviousNorm previous_;
  bool is_loaded_ = false;      ///< a saved state was read since the last step
  bool shares_memory_ = false;  ///< some bucket lies in a host window
  bool is_broken_ = false;      ///< only destruction is left
  bool refused_ = false;        ///< the last call was refused on all ranks together
  int64_t finished_at_ = -1;    ///< job step of the last finish(); -1: none
  bool said_cost_of_dirty_ = false, said_passes_ = false;
};

}  // namespace fusedbun

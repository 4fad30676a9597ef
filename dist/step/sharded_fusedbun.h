#pragma once
// ShardedFusedbun: the optimizer of a data-parallel job whose state is divided over the ranks, as
// in ZeRO (Rajbhandari et al., 2020). It has the shape of a torch::optim optimizer, so a training
// loop keeps its own.
//
// Where a gradient goes: its hook copies it into bucket memory -> the bucket's reduce-scatter
// leaves during backward -> step(): ranks agree (finite? used? norm) -> each rank steps its own
// rows -> all-gather -> the parameters. Column statistics and the header travel after that and are
// waited for in the next step.
//
// Invariants: 1. All ranks construct it with the same parameters in the same order, and call step()
// equally often.
// 2. Parameters are equal on all ranks after construction (rank 0's are broadcast) and after every
// step. 3. A skipped step (nonfinite = skip) changes no parameter, no state and no t, but counts as
// a job step.
//
// Thread safety: as torch::optim, one thread at a time; hooks may run on autograd's threads.
#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/core/loss_scale.h"
#include "fusedbun/dist/changes/change.h"
#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/plan/transport_choice.h"
#include "fusedbun/dist/step/placement.h"

namespace fusedbun {

class RankPositionCell;

/// The two ways a job's ranks talk. On CPUs they may be the same object.
struct Channels {
  comm::Communicator* data =
      nullptr;  ///< gradients and parameters; its device is where the parameters live
  comm::Communicator* host = nullptr;  ///< headers and changes: host memory, never NCCL
  RankPositionCell* board = nullptr;   ///< told where this rank stands; none: nobody watches
  /// Where this rank's parameters are; none: the CPU, or, where `data` moves GPU memory, the current GPU.
  std::optional<Placement> placement = {};
};

class StepTrace;

/// In which type gradients travel between ranks that do not share memory. They are added up in rank order, in float64 for float64
/// parameters and float32 for all others.
enum class GradientWire : uint8_t {
  exact,  ///< in the parameter's type
  bf16,   ///< those of float32 parameters rounded to bfloat16: half the bytes. CPUs
};

/// What a step changes of a row, new value less old one, on its way between ranks that do not share memory.
enum class UpdateWire : uint8_t {
  exact,  ///< the new row in the parameter's type
  bf16,  ///< the change of float32 rows rounded to bfloat16: half the bytes, off by at most 2^-8 of itself. Every rank adds it to its float32
         ///< row, the owner too, so all keep the same. CPUs
};

enum class GradientRelease : uint8_t {
  in_hook,  ///< p.grad goes at once; its memory, if messages carry it from there, with the bucket's step
  after_step,  ///< p.grad is this rank's own gradient until step() returns; to write it between backward and step() is an error
  never,       ///< the caller's zero_grad()
};

struct ShardedOptions {
  int64_t min_rows_per_rank = 4;    ///< a matrix with fewer rows per rank stays whole on one
  int64_t bucket_bytes = 25 << 20;  ///< gradients that travel together
  /// Over messages, segments of at least this size travel from and to where they lie; shorter ones are packed into one message, which
  /// costs some ten microseconds: what it takes to copy this much.
  int64_t in_place_bytes = 64 << 10;
  double max_grad_norm = 0;  ///< clip the averaged gradient to this global 2-norm; 0: off
  /// With step_in_backward, whose steps begin before their norm is known: max_grad_norm clips by the norm of the step before. The first step
  /// is not clipped.
  bool clip_by_previous_norm = false;
  /// The summed gradient is divided by this; default: world size x backward passes since the last
  /// step.
  std::optional<double> gradient_divisor = {};
  /// Gradients in float16: scale_loss() multiplies the loss by a scale that falls when gradients overflow, whose steps are skipped, and rises
  /// after many good ones, as torch.amp.GradScaler does. Needs nonfinite = skip in all groups. None: scale_loss() returns its loss.
  std::optional<LossScaleRules> dynamic_loss_scale = {};
  GradientWire gradient_wire = GradientWire::exact;
  UpdateWire update_wire = UpdateWire::exact;
  /// How gradients and rows travel; equal on all ranks. Anything but automatic is used or refused with a ConfigError that says why.
  plan::GradientTransport transport = plan::GradientTransport::automatic;
  /// Steps each bucket inside the backward pass, as soon as the next one has left. Needs nonfinite = propagate in all
  /// groups, no clipping or clip_by_previous_norm, and a gradient for every parameter in every step, because nothing is agreed on before the first
  /// write.
  bool step_in_backward = false;
  /// Ranks that share a host keep one replica of the parameters in shared memory and read one another's gradients there.
  /// The tensors' storage is replaced once, here; pointers into the old one do not see later steps.
  bool host_window = true;
  /// When p.grad goes. `in_hook` saves the memory of all gradients, and p.grad cannot be read between backward and step().
  GradientRelease release = GradientRelease::after_step;
  bool broadcast_parameters = true;  ///< start from rank 0's parameters
  StepTrace* trace = nullptr;  ///< is told what this rank does when; it outlives the optimizer
  /// Called with one sentence about things a person should know once (a slow path taken, an uneven
  /// plan).
  std::function<void(std::string_view)> notice = {};
};

/// What one step() is told.
struct StepOptions {
  /// The program multiplied the loss by this before backward: gradients are divided by it. Equal on all ranks. A step whose scaled
  /// gradients overflow is skipped on all ranks together: take_outcomes(). With dynamic_loss_scale it stays 1.
  double loss_scale = 1;
};

/// A param group with a name, under which changes address it.
struct NamedGroup {
  std::string name;  ///< not "all" or "*"
  FusedbunOptions options;
  /// A change of weight decay for all groups leaves it out: biases and norms. It can be addressed by name.
  bool is_exempt_from_decay = false;
};

class StepEngine;

class ShardedFusedbun : public torch::optim::Optimizer {
 public:
  /// Named parameters of one group; `model->named_parameters()` fits. Frozen ones (requires_grad
  /// false) are left alone. Throws ConfigError on every rank, naming the first differing parameter,
  /// if the ranks' models differ; for an option out of range; and for two parameters that share
  /// memory without being one tensor. Collective.
  ShardedFusedbun(Channels channels,
                  const torch::OrderedDict<std::string, torch::Tensor>& parameters,
                  FusedbunOptions defaults, ShardedOptions options = {});
  /// Param groups, as LibTorch has them; parameters are named group.index.
  ShardedFusedbun(Channels channels, const std::vector<torch::optim::OptimizerParamGroup>& groups,
                  FusedbunOptions defaults, ShardedOptions options = {});
  /// Named parameters in several groups; `group_of` says in which each is. Parameters keep their order, in which their gradients are
  /// expected from the last to the first, so groups may alternate.
  ShardedFusedbun(
      Channels channels, const torch::OrderedDict<std::string, torch::Tensor>& parameters,
      const std::vector<NamedGroup>& groups,
      const std::function<size_t(const std::string& name, const torch::Tensor& tensor)>& group_of,
      ShardedOptions options = {});
  ~ShardedFusedbun() override;

  /// Of param_groups()[group]: its name; without one "default", or "group1" where there are several.
  std::string group_name(size_t group) const;
  bool is_exempt_from_decay(size_t group) const;

  /// Calls `closure` first, with gradients enabled, and returns its loss (undefined without one). Steps with the gradients
  /// that stand in p.grad now. Collective.
  ///
  /// Throws ConfigError, on every rank with the same sentence, for what the ranks cannot do together (a gradient that was written
  /// after it had been sent, passes that differ between ranks, a parameter whose type changed): nothing has changed then, p.grad
  /// stands, and training may go on, unless ranks made different calls. Throws PeerLostError, TimeoutError, DivergedError; after
  /// one of them the optimizer can only be destroyed.
  torch::Tensor step(LossClosure closure = nullptr) override;
  torch::Tensor step(const StepOptions& options, LossClosure closure = nullptr);

  /// With dynamic_loss_scale: the loss times the scale, for backward(): `optimizer.scale_loss(loss).backward(); optimizer.step();`. Each
  /// loss of a step goes through it, those of micro-batches too. On a GPU the scale is a tensor there, which the step changes: the host does
  /// not wait for it. Without dynamic_loss_scale: the loss.
  torch::Tensor scale_loss(const torch::Tensor& loss);
  /// As far as the host knows: after step() on CPUs; on GPUs after the steps that take_outcomes() has told of.
  LossScaleState loss_scale() const;

  /// Writes parameters, once, on all ranks: runs `write` on rank 0 alone, without gradients, and gives every rank the values
  /// that are there after it. For loading weights, clipping, averaging: whatever would be applied once per rank to a replica
  /// that ranks share. `write` may replace a parameter's memory (torch::load), not its type or shape. If it throws, every rank
  /// throws. Collective, between two steps.
  void write_parameters(const std::function<void()>& write);

  /// A late group; all ranks, between two steps, with equal parameters. Throws ConfigError and changes nothing if it is refused.
  /// Collective.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// While the guard lives, backward only accumulates into .grad: nothing travels. For all but the
  /// last micro-batch.
  class [[nodiscard]] NoSync {
   public:
    explicit NoSync(ShardedFusedbun& optimizer);
    ~NoSync();
    NoSync(const NoSync&) = delete;

   private:
    ShardedFusedbun& optimizer_;
  };
  NoSync no_sync() { return NoSync(*this); }

  /// For HessianSource::external: the whole parameter's diagonal, equal on all ranks; used by the
  /// next step, then dropped.
  void set_hessian_diagonal(const torch::Tensor& parameter, torch::Tensor diagonal);

  /// Waits for what step() left under way. Called once, after the last step, by all ranks;
  /// collective.
  void finish();

  /// Who changes and watches this job; rank 0 gives an object, the others nullptr. All ranks call
  /// it, before the first step.
  void set_control(changes::ControlPort* port);
  /// What the last step looked like; on every rank.
  const changes::StepReport& report() const;
  /// Set on all ranks at the same step when the job was asked to leave, also while it was paused: the loop ends.
  changes::LeaveRequest leave_request() const;
  /// Asks all ranks to leave (a signal arrived here); takes effect on all at the same step.
  /// Async-signal-safe.
  void request_leave(changes::LeaveRequest request) noexcept;

  /// True after one step on all ranks, the same one, when somebody asked for a checkpoint (fusedbun checkpoint save): the loop
  /// saves one before the next step, `if (optimizer.checkpoint_requested()) job.save(contents);`.
  bool checkpoint_requested() const;
  /// For how long step() has held this job by now, because somebody paused it (fusedbun pause): no time of training.
  double held_seconds() const;

  double max_grad_norm() const;  ///< as constructed; 0: off
  changes::JobCapabilities capabilities() const;
  bool shares_memory() const;  ///< a host window is in use
  int64_t job_step() const;    ///< steps done, skipped ones too
  int64_t skipped_steps() const;
  /// What became of a step.
  struct StepOutcome {
    int64_t job_step = 0;
    bool skipped = false;
    double gradient_norm =
        0;  ///< 0 unless clipping; with clip_by_previous_norm the norm of the step before
    double loss_scale = 1;  ///< that scale_loss() multiplied its losses by
  };
  /// Of the steps that this rank has heard of since the last call, oldest first (at most the last 64); the same on all ranks. step() hears
  /// of its own on CPUs. GPUs decide by themselves, so there it hears of the step that is outcome_delay() steps back; settle() waits for
  /// all, and is called by all ranks alike.
  std::vector<StepOutcome> take_outcomes();
  int outcome_delay() const;
  void settle();
  /// What changes have set and will set on all ranks.
  changes::ActiveChanges::Saved active_changes() const;
  const plan::ShardPlan& shard_plan() const;
  /// The tensor of shard_plan().parameters[index].
  const torch::Tensor& parameter(int index) const;
  int64_t state_bytes() const;          ///< measured: bytes of this rank's state tensors
  int64_t planned_state_bytes() const;  ///< the formula's answer for this rank

  /// What this rank owns of one parameter; the tensors are the optimizer's own memory.
  struct OwnedRows {
    int parameter = 0;  ///< index in shard_plan().parameters
    std::string name;
    RowRange range;
    torch::Tensor values;  ///< [rows, m] of the parameter, contiguous
    SegmentState* state = nullptr;
    int64_t t = 0;
  };
  std::vector<OwnedRows> owned_rows() const;

  /// What all ranks know alike, beside the rows.
  struct ReplicatedState {
    int64_t job_step = 0;
    int64_t skipped_steps = 0;
    std::vector<int64_t> step_counts;  ///< t, by parameter of shard_plan()
    /// Of a parameter's values; used with scale_by_parameter_rms alone. NaN: the program has written it, add them up anew.
    std::vector<double> sums_of_squares;
    std::vector<Options> groups;  ///< lr as the program or its schedule set it
    double gradient_norm = 0;     ///< of the last step, with clip_by_previous_norm; 0: not known
    std::optional<LossScaleState> loss_scale = {};  ///< with dynamic_loss_scale
    changes::ActiveChanges::Saved changes;
  };
  /// Completes the last step, so that owned_rows() and the result are what it has left; between two steps. Collective: ranks that
  /// stand at different steps, or differ in their state, throw instead. For checkpoints (dist/job/checkpointer.h).
  ReplicatedState state_to_save();
  /// Takes a saved state: `read_rows` writes the values and the state of rows that this rank owns, for each of its owned_rows();
  /// then every rank has the values of all. What it throws on one rank all ranks throw, and the optimizer can only be destroyed.
  /// Gradients of a backward pass that has begun are dropped. Collective, between two steps.
  void restore(const ReplicatedState& state,
               const std::function<void(const OwnedRows& rows)>& read_rows);

  /// This rank's shard, one file per rank; load throws DataError unless rank, model and world size
  /// are those of the save.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

 private:
  void require_some() const;

  std::vector<NamedGroup> named_;  ///< the first groups; later ones have no name
  std::unique_ptr<StepEngine> engine_;
};

}  // namespace fusedbun

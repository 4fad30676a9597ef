#pragma once
// Stepper: how a job's gradients become parameters, as the training loop sees it. Two of them: the sharded Fusedbun
// optimizer, and AdamW with plain data-parallel averaging, to compare with.
//
// A job step is: begin(lr); accumulate(backward) for all but the last backward pass; the last backward pass; step(). Each pass is one
// through scale_loss(loss).
// All ranks call the same in the same order.
//
// Thread safety: one thread at a time, except request_leave, which is async-signal-safe.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/loss_scale.h"
#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/plan/transport_choice.h"
#include "fusedbun/dist/snapshot/checkpointer.h"
#include "fusedbun/launcher/monitoring/run_observer.h"
#include "fusedbun/launcher/train/optimizer_choice.h"

namespace fusedbun {

class Job;
class StepTrace;

namespace model {
class CausalLm;
}

namespace train {

struct StepOutcome {
  double lr = 0;         ///< as used
  double grad_norm = 0;  ///< of the averaged gradient, before clipping; 0: not clipping
  int64_t revision = 0;  ///< of the hyperparameters in use
  int64_t skipped = 0;   ///< steps skipped so far
  /// Of a loss scale: what is known of it since this step. On CPUs of this one, on GPUs of one two steps back.
  struct Scale {
    double used = 1;           ///< losses were multiplied by it
    LossScaleState next;       ///< after that step
    bool has_skipped = false;  ///< some step that was heard of now
  };
  std::optional<Scale> loss_scale = {};
  std::vector<monitoring::GroupRate> group_rates = {};
  std::vector<std::string> changes = {};  ///< that it was the first to use, in words; rank 0's
};

class Stepper {
 public:
  virtual ~Stepper() = default;
  Stepper() = default;
  Stepper(const Stepper&) = delete;  // has hooks in the model

  /// `lr` is that of all groups.
  virtual void begin(double lr) = 0;
  virtual void accumulate(const std::function<void()>& backward) = 0;
  /// With StepperOptions::loss_scale: times the scale, by which step() divides.
  virtual torch::Tensor scale_loss(const torch::Tensor& loss) { return loss; }
  virtual StepOutcome step() = 0;
  /// Waits for what is under way; once, after the last step.
  virtual void finish() = 0;

  virtual changes::LeaveRequest leave_request() const = 0;
  virtual void request_leave(changes::LeaveRequest request) noexcept = 0;

  /// For how long step() has held this job by now, because somebody paused it.
  virtual double held_seconds() const { return 0; }
  /// After one step, on all ranks alike: somebody asked for a checkpoint.
  virtual bool checkpoint_requested() const = 0;

  /// Job steps done, those before a checkpoint included.
  virtual int64_t job_step() const = 0;
  /// As Job::save, of the model and the optimizer. Collective; only where there are checkpoints.
  virtual SaveStart save(const CheckpointTexts& values) = 0;

  /// True if a step with NaN or inf gradients changes nothing.
  virtual bool skips_nonfinite() const = 0;
  virtual int64_t planned_state_bytes() const = 0;     ///< by the formula, this rank
  virtual int64_t state_bytes() const = 0;             ///< of the tensors there are, this rank
  virtual std::string describe_transport() const = 0;  ///< how gradients and rows travel; one line
  virtual plan::GradientTransport transport()
      const = 0;                         ///< the same for programs; never automatic
  virtual std::string plan() const = 0;  ///< who owns what; many lines
};

struct StepperOptions {
  Options optimizer;       ///< options_of(choice)
  bool decays_all = true;  ///< false: parameters of fewer than two dimensions have no weight decay
  double max_grad_norm = 0;  ///< 0: no clipping
  int accumulation = 1;
  bool host_window = true;
  int64_t bucket_bytes = 25 << 20;
  bool bf16_on_wire = false;
  bool step_in_backward = false;
  bool clip_by_previous_norm = false;
  std::optional<LossScaleRules> loss_scale = {};  ///< none: losses are not scaled
  StepTrace* trace = nullptr;
  /// What its checkpoints keep beside the weights: config.json, the tokenizer's files.
  CheckpointTexts companions = {};
  std::function<void(std::string_view)> notice;
};

/// From which checkpoint a stepper goes on, and what it found.
struct ResumeRequest {
  LoadOptions from;
  std::optional<Loaded> loaded;  ///< none: there is no checkpoint
};

/// With `resume`, goes on from a checkpoint if there is one. Serves the control plane of `job`. Collective; throws ConfigError.
std::unique_ptr<Stepper> make_fusedbun_stepper(Job& job, model::CausalLm& model,
                                               const StepperOptions& options,
                                               ResumeRequest* resume);
/// CPU only, no checkpoints. Collective; throws ConfigError.
std::unique_ptr<Stepper> make_adamw_stepper(Job& job, model::CausalLm& model,
                                            const StepperOptions& options);

}  // namespace train
}  // namespace fusedbun

#pragma once
// TrainingLoop: job step after job step until the last, early stopping, a request to leave, or a loss that is no number.
//
// Thread safety: none; one per process.
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "fusedbun/launcher/monitoring/run_observer.h"
#include "fusedbun/launcher/train/early_stopping.h"
#include "fusedbun/launcher/train/global_batch.h"
#include "fusedbun/launcher/train/progress.h"
#include "fusedbun/launcher/train/run_checkpoints.h"
#include "fusedbun/launcher/train/schedule.h"
#include "fusedbun/launcher/train/stepper.h"
#include "fusedbun/launcher/train/validation.h"

namespace fusedbun::train {

struct LoopOptions {
  Schedule schedule;
  BatchShare share;
  ValidationOptions validation;
  int64_t context = 0;
  uint64_t seed = 0;       ///< of the run, for dropout
  int64_t eval_every = 0;  ///< 0: only before the first and after the last step
  double loss_scale_minimum = 1;
  /// Of the attempt that began the run; this one goes on from a checkpoint, whose step the stepper knows.
  std::optional<double> first_validation_loss = {};
  EarlyStopping early_stopping = {};
  ValidationHistory validations = {};  ///< before this attempt
};

/// What the loop works with; all outlive it.
struct LoopParts {
  model::CausalLm& model;
  const data::Corpus& corpus;
  const data::Corpus& validation;  ///< whose validation samples are; mostly the same
  Stepper& stepper;
  Job& job;
  Progress& progress;
  std::vector<monitoring::RunObserver*> observers;         ///< none but on rank 0
  RunCheckpoints* checkpoints;                             ///< nullptr: none are saved
  std::function<void(int64_t steps_done)> step_done = {};  ///< told on every rank
  std::function<void(const BestValidation&)> validated =
      {};  ///< after each; the model stands still
};

struct LoopResult {
  double first_validation_loss = 0;
  double last_validation_loss = 0;  ///< the newest there is when the job was drained
  std::optional<int64_t> last_validation_step = {};  ///< steps done before it; none in this attempt
  ValidationHistory validations = {};
  bool has_stopped_early = false;
  int64_t steps = 0;
  double tokens_per_second = 0;  ///< all ranks, this attempt, validation not counted
  changes::LeaveRequest leave = changes::LeaveRequest::none;
};

class TrainingLoop {
 public:
  TrainingLoop(const LoopParts& parts, const LoopOptions& options)
      : parts_(parts), options_(options) {}

  /// Collective. Throws ConfigError when the loss is no number, or no loss scale is small enough, on all ranks alike, and what the
  /// stepper throws.
  LoopResult run();

 private:
  void validate(int64_t job_step);
  comm::Communicator& host();
  /// What this rank computes in one job step.
  struct StepBatches {
    std::vector<Batch> passes;  ///< [accumulation]
    double predicted = 0;       ///< targets of this rank
    double predicted_by_all = 0;
  };
  StepBatches batches_of(int64_t job_step) const;
  double compute_gradients(int64_t job_step);
  void one_step(int64_t job_step);
  /// How long a step took: as a whole, and its forward and backward passes.
  struct StepTime {
    double whole_seconds = 0;
    double gradients_seconds = 0;
  };
  void report(int64_t job_step, double loss, const StepOutcome& outcome, const StepTime& time);
  void follow_loss_scale(int64_t job_step, const StepOutcome& outcome);
  void require_finite(int64_t job_step, double loss, const StepOutcome& outcome);

  LoopParts parts_;
  LoopOptions options_;
  LoopResult result_;
  double training_seconds_ = 0;
  int64_t first_step_ = 0;           ///< of this attempt
  StepBatches batches_;              ///< of the next step
  bool is_checkpoint_time_ = false;  ///< by rank 0's clock, on all ranks
  int nonfinite_in_a_row_ = 0;
  bool is_at_minimum_told_ = false;  ///< of the loss scale, since it was above it
};

}  // namespace fusedbun::train

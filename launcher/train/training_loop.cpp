#include "fusedbun/launcher/train/training_loop.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/train/across_ranks.h"

namespace fusedbun::train {
namespace {

/// Skipped steps in a row after which nothing better is to be expected.
constexpr int kNonfiniteInARowMax = 10;
/// The same of steps whose scaled gradients overflow. From 65536 sixteen take the scale to its minimum, 1, and four more are skipped there;
/// DeepSpeed gives up at the first one there, fairseq after twenty from its initial scale.
constexpr int64_t kOverflowsInARowMax = 20;

std::string number(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

comm::Communicator& TrainingLoop::host() {
  return *parts_.job.channels().host;
}

LoopResult TrainingLoop::run() {
  const int64_t steps = options_.schedule.total_steps;
  first_step_ = result_.steps = parts_.stepper.job_step();
  result_.validations = options_.validations;
  if (first_step_ == 0 || !options_.first_validation_loss) validate(first_step_);
  result_.first_validation_loss =
      options_.first_validation_loss.value_or(result_.last_validation_loss);
  if (parts_.checkpoints != nullptr) {
    parts_.checkpoints->set_first_validation_loss(result_.first_validation_loss);
    parts_.checkpoints->set_validations(result_.validations);
  }
  if (first_step_ < steps) {
    batches_ = batches_of(first_step_);
    batches_.predicted_by_all = sum_over_ranks(host(), {batches_.predicted})[0];
  }
  for (int64_t job_step = first_step_;
       job_step < steps && result_.leave == changes::LeaveRequest::none; ++job_step) {
    const bool due = options_.eval_every > 0 && job_step > 0 && job_step % options_.eval_every == 0;
    if (due) validate(job_step);
    if (due && is_time_to_stop(result_.validations, options_.early_stopping)) {
      result_.has_stopped_early = true;
      break;
    }
    one_step(job_step);
    result_.steps = job_step + 1;
    if (parts_.checkpoints != nullptr && parts_.stepper.checkpoint_requested()) {
      parts_.checkpoints->save_requested(result_.steps);
    } else if (parts_.checkpoints != nullptr && result_.steps < steps) {
      parts_.checkpoints->after_step(result_.steps, is_checkpoint_time_);
    }
    if (parts_.step_done) parts_.step_done(result_.steps);
    // All ranks may agree to leave after what proves to be the last step: then the run is at its end.
    if (result_.steps < steps) result_.leave = parts_.stepper.leave_request();
  }
  if (parts_.checkpoints != nullptr && result_.leave == changes::LeaveRequest::drain) {
    parts_.checkpoints->before_leaving(result_.steps);
  }
  parts_.stepper.finish();
  // Who drains a job has seconds to give, not a validation.
  if (result_.leave != changes::LeaveRequest::drain) validate(result_.steps);
  return result_;
}

void TrainingLoop::validate(int64_t job_step) {
  if (result_.last_validation_step == job_step) return;
  const plan::Phase before = parts_.job.enter(plan::Phase::validate);
  const double loss = validation_loss(parts_.model, parts_.validation, options_.validation, host());
  result_.last_validation_loss = loss;
  result_.last_validation_step = job_step;
  result_.validations =
      after_validation(result_.validations, options_.early_stopping, job_step, loss);
  if (parts_.checkpoints != nullptr) parts_.checkpoints->set_validations(result_.validations);
  for (monitoring::RunObserver* const observer : parts_.observers)
    observer->validated(job_step, loss);
  parts_.progress.say("validation loss " + number("%.4f", loss) + " after " +
                      std::to_string(job_step) + " steps");
  if (parts_.validated) parts_.validated({job_step, loss});
  parts_.job.enter(before);
}

void TrainingLoop::one_step(int64_t job_step) {
  const auto start = Progress::Clock::now();
  parts_.stepper.begin(learning_rate(options_.schedule, job_step));
  const double local_loss = compute_gradients(job_step);
  const auto gradients_done = Progress::Clock::now();
  const double held_before = parts_.stepper.held_seconds();
  const StepOutcome outcome = parts_.stepper.step();
  // In the message of the loss, so that they cost none: rank 0's clock says when a checkpoint is due, and how many tokens the next step
  // predicts is known before its first backward pass.
  batches_ =
      job_step + 1 < options_.schedule.total_steps ? batches_of(job_step + 1) : StepBatches();
  const bool is_time =
      parts_.checkpoints != nullptr && host().rank() == 0 && parts_.checkpoints->is_time();
  const std::vector<double> sums =
      sum_over_ranks(host(), {local_loss, is_time ? 1.0 : 0.0, batches_.predicted});
  const double loss = sums[0] / options_.share.world_size;
  is_checkpoint_time_ = sums[1] > 0;
  batches_.predicted_by_all = sums[2];
  const auto seconds_to = [&](auto end) {
    return std::chrono::duration<double>(end - start).count();
  };
  const double held = parts_.stepper.held_seconds() - held_before;
  report(job_step, loss, outcome,
         {seconds_to(Progress::Clock::now()) - held, seconds_to(gradients_done)});
  require_finite(job_step, loss, outcome);
  if (outcome.loss_scale) follow_loss_scale(job_step, outcome);
}

TrainingLoop::StepBatches TrainingLoop::batches_of(int64_t job_step) const {
  const torch::Device device = parts_.model.parameters()[0].device();
  StepBatches batches;
  for (int micro_step = 0; micro_step < options_.share.accumulation; ++micro_step) {
    const auto fill = [&](int64_t i, const data::Sequence& sequence) {
      const int64_t first = job_step * options_.share.global_sequences;
      parts_.corpus.training_sample(first + options_.share.index(micro_step, i), sequence);
    };
    batches.passes.push_back(
        make_batch(options_.share.micro_sequences, options_.context, device, fill));
    batches.predicted += static_cast<double>(batches.passes.back().predicted);
  }
  return batches;
}

double TrainingLoop::compute_gradients(int64_t job_step) {
  // The optimizer divides by passes and ranks. Where passes predict different numbers of tokens their means would weigh each token by the
  // company it is in.
  std::optional<double> divisor;
  if (!parts_.corpus.predicts_everywhere()) {
    divisor = std::max(1.0, batches_.predicted_by_all) /
              (options_.share.accumulation * options_.share.world_size);
  }
  torch::Tensor loss_sum;
  int micro_step = 0;
  for (const Batch& batch : batches_.passes) {
    const int64_t first = options_.share.index(micro_step++, 0);
    const torch::Tensor loss =
        parts_.model.loss(batch.tokens, batch.targets, batch.positions, divisor,
                          dropout_seed(options_.seed, job_step, first));
    const torch::Tensor scaled = parts_.stepper.scale_loss(loss);
    if (&batch != &batches_.passes.back()) {
      parts_.stepper.accumulate([&] { scaled.backward(); });
    } else {
      scaled.backward();
    }
    loss_sum = loss_sum.defined() ? loss_sum + loss.detach() : loss.detach();
  }
  return loss_sum.item<double>() / options_.share.accumulation;
}

void TrainingLoop::report(int64_t job_step, double loss, const StepOutcome& outcome,
                          const StepTime& time) {
  training_seconds_ += time.whole_seconds;
  const auto tokens = static_cast<double>(options_.share.global_sequences * options_.context);
  const auto steps_done = static_cast<double>(job_step + 1 - first_step_);
  const auto steps_left = static_cast<double>(options_.schedule.total_steps - job_step - 1);
  result_.tokens_per_second = tokens * steps_done / training_seconds_;
  if (!parts_.observers.empty()) {
    monitoring::StepMetrics metrics{.step = job_step,
                                    .loss = loss,
                                    .lr = outcome.lr,
                                    .tokens_per_second = tokens / time.whole_seconds,
                                    .grad_norm = outcome.grad_norm,
                                    .revision = outcome.revision,
                                    .skipped = outcome.skipped,
                                    .tokens = options_.share.global_sequences * options_.context,
                                    .seconds = time.whole_seconds,
                                    .group_rates = outcome.group_rates,
                                    .changes = outcome.changes};
    std::vector<changes::Metric> live = {
        {"loss", loss},
        {"tokens_per_second", tokens / time.whole_seconds},
        {"gradients_seconds", time.gradients_seconds},
        {"optimizer_seconds", time.whole_seconds - time.gradients_seconds}};
    if (outcome.loss_scale) {
      metrics.loss_scale = {outcome.loss_scale->used, outcome.loss_scale->next.good_steps};
      live.push_back({"loss_scale", outcome.loss_scale->used});
    }
    for (monitoring::RunObserver* const observer : parts_.observers) observer->step_done(metrics);
    parts_.job.record_metrics(job_step, live);
  }
  StepLine line{job_step, options_.schedule.total_steps, loss, result_.tokens_per_second,
                training_seconds_ / steps_done * steps_left};
  if (outcome.loss_scale) line.loss_scale = outcome.loss_scale->used;
  parts_.progress.step(line, Progress::Clock::now());
}

void TrainingLoop::follow_loss_scale(int64_t job_step, const StepOutcome& outcome) {
  const LossScaleState& next = outcome.loss_scale->next;
  if (next.skipped_in_a_row >= kOverflowsInARowMax) {
    throw ConfigError(
        "the gradients overflowed in " + std::to_string(next.skipped_in_a_row) +
        " steps in a row, the last of them job step " + std::to_string(job_step) + " at lr " +
        number("%g", outcome.lr) + " with a loss scale of " + number("%g", next.scale) +
        ": no model is saved; try a lower --lr, a longer --warmup, or --precision bf16-autocast");
  }
  if (!outcome.loss_scale->has_skipped) return;
  if (next.scale > options_.loss_scale_minimum) {
    is_at_minimum_told_ = false;
  } else if (!is_at_minimum_told_) {
    is_at_minimum_told_ = true;
    parts_.progress.say("the loss scale is at its minimum, " + number("%g", next.scale) +
                        ", after job step " + std::to_string(job_step) +
                        ": steps whose gradients overflow even so are skipped, and it falls no "
                        "further");
  }
}

void TrainingLoop::require_finite(int64_t job_step, double loss, const StepOutcome& outcome) {
  if (std::isfinite(loss)) {
    nonfinite_in_a_row_ = 0;
    return;
  }
  const bool skipped = parts_.stepper.skips_nonfinite();
  if (skipped && ++nonfinite_in_a_row_ < kNonfiniteInARowMax) return;
  throw ConfigError("the loss became " + number("%g", loss) + " in job step " +
                    std::to_string(job_step) + " at lr " + number("%g", outcome.lr) +
                    (skipped ? ", the last of several skipped steps" : "") +
                    ": no model is saved; try a lower --lr, a longer --warmup, or --clip 1");
}

}  // namespace fusedbun::train

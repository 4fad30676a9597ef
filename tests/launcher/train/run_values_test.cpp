#include "fusedbun/launcher/train/run_values.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

Schedule schedule_in(const TrainOptions& options) {
  return schedule_of(options.schedule, 3e-3, options.length.steps.value_or(300));
}

RunValues values(const TrainOptions& options) {
  return values_of(options, 128, schedule_in(options), {}, 42);
}

TEST(RunValues, WhatDecidesSamplesAndArithmeticMayNotDiffer) {
  const TrainOptions first;
  EXPECT_EQ(differences_that_break(values(first), values(first)), "");
  TrainOptions other = first;
  other.batch = 32;
  other.seed = 7;
  EXPECT_EQ(differences_that_break(values(first), values(other)),
            "--seed (1, here 7), --batch (16, here 32)");
  EXPECT_EQ(differences_of_schedule(values(first), values(other)), "");
  other = first;
  other.optimizer.weight_decay = 0.5;
  EXPECT_NE(differences_that_break(values(first), values(other)).find("--optimizer"),
            std::string::npos);
  EXPECT_NE(
      differences_that_break(values(first), values_of(first, 128, schedule_in(first), {}, 43)), "");
}

TEST(RunValues, ALongerRunIsAnotherSchedule) {
  const TrainOptions first;
  TrainOptions longer = first;
  longer.length.steps = 600;
  EXPECT_EQ(differences_that_break(values(first), values(longer)), "");
  EXPECT_EQ(differences_of_schedule(values(first), values(longer)), "--steps (300, here 600)");
  // Threads, ranks, names of files: nothing that a checkpoint has to agree with.
  longer = first;
  longer.threads = 4;
  longer.run_dir = "elsewhere";
  EXPECT_EQ(differences_of_schedule(values(first), values(longer)), "");
}

TEST(RunValues, ThePositionComesBackToTheBit) {
  RunValues saved = values({});
  EXPECT_FALSE(first_validation_loss_in(saved));
  add_position(saved, 100, 16, 0.1 + 0.2);
  EXPECT_EQ(saved.at("next sample"), "1600");
  EXPECT_EQ(first_validation_loss_in(saved), 0.1 + 0.2);
  saved["first validation loss"] = "5.4 or so";
  EXPECT_FALSE(first_validation_loss_in(saved));
}

TEST(RunValues, APrecisionMayNotDifferAndOldCheckpointsAreOfFloat32) {
  const TrainOptions first;
  TrainOptions other = first;
  other.precision = Precision::bf16_autocast;
  EXPECT_EQ(differences_that_break(values(first), values(other)),
            "--precision (float32, here bf16-autocast)");
  RunValues old = values(first);
  old.erase("--precision");
  EXPECT_EQ(differences_that_break(old, values(first)), "");
  EXPECT_EQ(differences_that_break(old, values(other)),
            "--precision (float32, here bf16-autocast)");
  // It changes no bit.
  other = first;
  other.checkpoints_activations = true;
  EXPECT_EQ(differences_that_break(values(first), values(other)), "");
  // Without a scale there is nothing that could grow.
  other.loss_scale.growth_interval = 5;
  EXPECT_EQ(differences_that_break(values(first), values(other)), "");
  TrainOptions scaled = first;
  other.precision = scaled.precision = Precision::fp16_autocast;
  EXPECT_EQ(differences_that_break(values(scaled), values(other)),
            "--loss-scale-growth-every (2000, here 5)");
}

TEST(RunValues, WhatTheRateDoesIsTheSchedule) {
  const TrainOptions first;
  TrainOptions other = first;
  other.schedule = {.kind = ScheduleKind::wsd, .floor_fraction = 0, .warmup = int64_t{10}};
  EXPECT_EQ(differences_that_break(values(first), values(other)), "");
  EXPECT_EQ(differences_of_schedule(values(first), values(other)),
            "--warmup (50, here 10), --schedule (cosine, here wsd), --min-lr (0.1, here 0)");
  TrainOptions longer = other;
  longer.schedule.decay_fraction = 0.5;
  EXPECT_EQ(differences_of_schedule(values(other), values(longer)),
            "--decay (60 steps, here 150 steps)");
  longer.early_stopping.patience = 3;
  EXPECT_THAT(differences_of_schedule(values(other), values(longer)),
              testing::HasSubstr("--early-stop (0, here 3)"));
  // Checkpoints from before there were schedules.
  RunValues old = values(first);
  for (const char* name : {"--schedule", "--min-lr", "--early-stop", "--early-stop-delta"})
    old.erase(name);
  EXPECT_EQ(differences_of_schedule(old, values(first)), "");
  EXPECT_EQ(differences_of_schedule(old, values(other)),
            "--warmup (50, here 10), --schedule (cosine, here wsd), --min-lr (0.1, here 0)");
}

TEST(RunValues, WhatIsTrainedAndDecayedMayNotDiffer) {
  TrainOptions first, other;
  other.optimizer.decays_all = true;
  other.freeze = {"wte.*", "h.0.*"};
  EXPECT_EQ(differences_that_break(values(first), values(other)),
            "--decay-all (false, here true), --freeze (nothing, here wte.* h.0.*)");
  // Checkpoints from before there were groups: all parameters had weight decay.
  RunValues old = values(first);
  old.erase("--decay-all");
  old.erase("--freeze");
  EXPECT_EQ(differences_that_break(old, values(first)), "--decay-all (true, here false)");
  // Without weight decay there is one group.
  first.optimizer.weight_decay = other.optimizer.weight_decay = 0;
  other.freeze.clear();
  EXPECT_EQ(differences_that_break(values(first), values(other)), "");
}

TEST(RunValues, ADropoutMayNotDifferAndOldCheckpointsHadNone) {
  const TrainOptions options;
  const Schedule schedule = schedule_in(options);
  const RunValues none = values(options);
  const RunValues some = values_of(options, 128, schedule, {.attention = 0.1}, 42);
  EXPECT_EQ(differences_that_break(some, some), "");
  EXPECT_EQ(differences_that_break(some, none), "--dropout (attention 0.1, here none)");
  RunValues old = none;
  old.erase("--dropout");
  EXPECT_EQ(differences_that_break(old, none), "");
  EXPECT_EQ(differences_that_break(old, some), "--dropout (none, here attention 0.1)");
}

TEST(RunValues, TheHistoryOfValidationsComesBackToTheBit) {
  RunValues saved = values({});
  EXPECT_EQ(validations_in(saved), ValidationHistory{});
  const ValidationHistory history{
      .best = BestValidation{150, 0.1 + 0.2}, .reference = 1.0 / 3, .without_better = 2};
  add_validations(saved, history);
  EXPECT_EQ(validations_in(saved), history);
}

}  // namespace
}  // namespace fusedbun::train

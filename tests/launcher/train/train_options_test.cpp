#include "fusedbun/launcher/train/train_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

struct BadValue {
  const char* flag;
  std::function<void(TrainOptions&)> set;
};

TEST(TrainOptionsTest, DefaultsAreValid) {
  EXPECT_NO_THROW(validate(TrainOptions{}));
}

TEST(TrainOptionsTest, RefusalsNameTheFlag) {
  const std::vector<BadValue> cases = {
      {"--steps = 0", [](TrainOptions& o) { o.length.steps = 0; }},
      {"--batch = -1", [](TrainOptions& o) { o.batch = -1; }},
      {"--accumulate = 0", [](TrainOptions& o) { o.accumulation = 0; }},
      {"--warmup = -1", [](TrainOptions& o) { o.schedule.warmup = int64_t{-1}; }},
      {"--epochs = 0", [](TrainOptions& o) { o.length.epochs = 0; }},
      {"--decay", [](TrainOptions& o) { o.schedule.decay_fraction = 0.1; }},
      {"--early-stop needs",
       [](TrainOptions& o) {
         o.early_stopping.patience = 3;
         o.eval_every = 0;
       }},
      {"--eval-every = -1", [](TrainOptions& o) { o.eval_every = -1; }},
      {"--validation-batches = 0", [](TrainOptions& o) { o.validation_batches = 0; }},
      {"--threads = -1", [](TrainOptions& o) { o.threads = -1; }},
      {"--context = 0", [](TrainOptions& o) { o.model.context = 0; }},
      {"--dropout = 1.000000: it is a probability", [](TrainOptions& o) { o.model.dropout = 1; }},
      {"--dropout = -0.1", [](TrainOptions& o) { o.model.dropout = -0.1; }},
      {"--dropout = nan",
       [](TrainOptions& o) { o.model.dropout = std::numeric_limits<double>::quiet_NaN(); }},
      {"--clip = nan",
       [](TrainOptions& o) { o.max_grad_norm = std::numeric_limits<double>::quiet_NaN(); }},
      {"--clip = -1", [](TrainOptions& o) { o.max_grad_norm = -1; }},
      {"--timeout", [](TrainOptions& o) { o.timeout = std::chrono::milliseconds(0); }},
      {"lr", [](TrainOptions& o) { o.optimizer.lr = -1; }},
      {"--precision bf16 needs float32 masters",
       [](TrainOptions& o) {
         o.precision = Precision::bf16;
         o.optimizer.kind = OptimizerKind::adamw;
       }},
      {"--precision fp16-autocast needs an optimizer that skips",
       [](TrainOptions& o) {
         o.precision = Precision::fp16_autocast;
         o.optimizer.kind = OptimizerKind::adamw;
       }},
      {"--step-in-backward",
       [](TrainOptions& o) {
         o.precision = Precision::fp16_autocast;
         o.step_in_backward = true;
       }},
      {"--propagate-nonfinite",
       [](TrainOptions& o) {
         o.precision = Precision::fp16_autocast;
         o.optimizer.propagate_nonfinite = true;
       }},
      {"--loss-scale = 0.5",
       [](TrainOptions& o) {
         o.precision = Precision::fp16_autocast;
         o.loss_scale.initial = 0.5;
       }},
      {"--loss-scale-growth-every = 0",
       [](TrainOptions& o) {
         o.precision = Precision::fp16_autocast;
         o.loss_scale.growth_interval = 0;
       }},
  };
  for (const BadValue& bad : cases) {
    TrainOptions options;
    bad.set(options);
    EXPECT_THAT([&] { validate(options); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr(bad.flag)));
  }
}

TEST(TrainOptionsTest, WhatFitsAPrecisionIsNotRefused) {
  for (const Precision precision : {Precision::float32, Precision::bf16_autocast}) {
    TrainOptions options;
    options.precision = precision;
    options.optimizer.kind = OptimizerKind::adamw;
    EXPECT_NO_THROW(validate(options)) << name_of(precision);
  }
  TrainOptions options;
  options.precision = Precision::bf16;
  options.step_in_backward = true;
  options.optimizer.propagate_nonfinite = true;
  EXPECT_NO_THROW(validate(options));
  options.loss_scale.initial = -1;  // of no interest without float16
  EXPECT_NO_THROW(validate(options));
}

TEST(TrainOptions, AdamWDoesNotClipByThePreviousNorm) {
  TrainOptions options;
  options.clip_by_previous_norm = options.step_in_backward = true;
  EXPECT_NO_THROW(validate(options));
  options.optimizer.kind = OptimizerKind::adamw;
  EXPECT_THROW(validate(options), ConfigError);
}

}  // namespace
}  // namespace fusedbun::train

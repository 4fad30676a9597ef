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
      {"--steps = 0", [](TrainOptions& o) { o.steps = 0; }},
      {"--batch = -1", [](TrainOptions& o) { o.batch = -1; }},
      {"--accumulate = 0", [](TrainOptions& o) { o.accumulation = 0; }},
      {"--warmup = -1", [](TrainOptions& o) { o.warmup_steps = -1; }},
      {"--eval-every = -1", [](TrainOptions& o) { o.eval_every = -1; }},
      {"--validation-batches = 0", [](TrainOptions& o) { o.validation_batches = 0; }},
      {"--threads = -1", [](TrainOptions& o) { o.threads = -1; }},
      {"--context = 0", [](TrainOptions& o) { o.model.context = 0; }},
      {"--clip = nan",
       [](TrainOptions& o) { o.max_grad_norm = std::numeric_limits<double>::quiet_NaN(); }},
      {"--clip = -1", [](TrainOptions& o) { o.max_grad_norm = -1; }},
      {"--timeout", [](TrainOptions& o) { o.timeout = std::chrono::milliseconds(0); }},
      {"lr", [](TrainOptions& o) { o.optimizer.lr = -1; }},
  };
  for (const BadValue& bad : cases) {
    TrainOptions options;
    bad.set(options);
    EXPECT_THAT([&] { validate(options); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr(bad.flag)));
  }
}

}  // namespace
}  // namespace fusedbun::train

// Loss scaling with float16 parameters, constant and dynamic.
#include <cmath>
#include <limits>

#include "user_program.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using testing::expect_refused;
using testing::expect_values;
using ::testing::HasSubstr;
using testing::plain_sgd;
using testing::Rank;

class UserLossScale : public testing::UserProgram {};

/// One float16 matrix and its optimizer on one rank.
struct HalfProgram {
  HalfProgram(Rank& rank, const ShardedOptions& options) {
    torch::OrderedDict<std::string, torch::Tensor> named;
    named.insert("w", w);
    optimizer = std::make_unique<ShardedFusedbun>(rank.channels(), named, plain_sgd(), options);
  }
  explicit HalfProgram(Rank& rank) : HalfProgram(rank, rank.options()) {}

  void backward(double gradient, double scale) const { ((w * gradient).sum() * scale).backward(); }

  at::Tensor w = at::full({8, 8}, 64.0, at::kHalf).requires_grad_();
  std::unique_ptr<ShardedFusedbun> optimizer;
};

TEST_P(UserLossScale, IsDividedOut) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    double expected = 64;
    for (const double scale : {1024.0, 1.0, 4096.0}) {
      program.backward(rank.gradient(), scale);
      program.optimizer->step(StepOptions{.loss_scale = scale});
      expected -= rank.mean_gradient();
      expect_values(program.w, expected, "scale " + std::to_string(scale));
    }
    program.backward(rank.gradient(), 1);
    program.optimizer->step();
    expect_values(program.w, expected - rank.mean_gradient(), "no scale");
  });
}

TEST_P(UserLossScale, IsDividedOutOfAccumulatedPasses) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    {
      const auto guard = program.optimizer->no_sync();
      for (int pass = 0; pass < 3; ++pass) program.backward(rank.gradient(), 256);
    }
    program.backward(rank.gradient(), 256);
    program.optimizer->step(StepOptions{.loss_scale = 256});
    expect_values(program.w, 64 - rank.mean_gradient());
  });
}

TEST_P(UserLossScale, IsDividedOutBeforeClipping) {
  on_ranks([](Rank& rank) {
    ShardedOptions options = rank.options();
    options.max_grad_norm = 12;
    HalfProgram program(rank, options);
    program.backward(3, 512);
    program.optimizer->step(StepOptions{.loss_scale = 512});
    EXPECT_NEAR(program.optimizer->report().gradient_norm, 24, 1e-6);  // 64 elements of 3
    expect_values(program.w, 64 - 1.5);
  });
}

TEST_P(UserLossScale, ThatCannotBeOneIsRefused) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    for (const double scale : {0.0, -2.0, std::numeric_limits<double>::infinity(),
                               std::numeric_limits<double>::quiet_NaN()}) {
      program.optimizer->zero_grad();
      program.backward(rank.gradient(), 1);
      expect_refused([&] { program.optimizer->step(StepOptions{.loss_scale = scale}); },
                     HasSubstr("loss_scale"), std::to_string(scale));
    }
    program.optimizer->step();
    expect_values(program.w, 64 - rank.mean_gradient(), "after refused scales");
  });
}

TEST_P(UserLossScale, AnOverflowOnOneRankSkipsTheStepOnAll) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    program.backward(rank.is_last() ? 60 : 1, 2048);  // 122,880 is no float16
    program.optimizer->step(StepOptions{.loss_scale = 2048});
    EXPECT_EQ(program.optimizer->skipped_steps(), 1);
    expect_values(program.w, 64, "skipped");
    program.optimizer->zero_grad();
    program.backward(rank.gradient(), 1024);
    program.optimizer->step(StepOptions{.loss_scale = 1024});
    EXPECT_EQ(program.optimizer->skipped_steps(), 1);
    expect_values(program.w, 64 - rank.mean_gradient());
  });
}

/// As torch.cuda.amp.GradScaler: halved by an overflow, doubled after some good steps.
class DynamicScale {
 public:
  double value() const { return value_; }
  void update(bool skipped) {
    good_steps_ = skipped ? 0 : good_steps_ + 1;
    if (skipped) value_ /= 2;
    if (good_steps_ == 3) {
      value_ *= 2;
      good_steps_ = 0;
    }
  }

 private:
  double value_ = 65536;
  int good_steps_ = 0;
};

TEST_P(UserLossScale, MayGrowAndShrink) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    DynamicScale scale;
    double largest = 0, smallest = 65536;
    int good_steps = 0;
    for (int step = 0; step < 16; ++step) {
      program.optimizer->zero_grad();
      program.backward(rank.gradient(), scale.value());
      const int64_t skipped_before = program.optimizer->skipped_steps();
      program.optimizer->step(StepOptions{.loss_scale = scale.value()});
      const bool skipped = program.optimizer->skipped_steps() > skipped_before;
      // The largest gradient of any rank is world size times the scale, and float16 ends at 65,504.
      EXPECT_EQ(skipped, scale.value() * rank.world_size() > 65504) << "step " << step;
      good_steps += skipped ? 0 : 1;
      scale.update(skipped);
      largest = std::max(largest, scale.value());
      smallest = std::min(smallest, scale.value());
      expect_values(program.w, 64 - good_steps * rank.mean_gradient(), "as without a scale");
    }
    EXPECT_GT(largest, smallest) << "the scale never changed";
    EXPECT_GE(good_steps, 10);
    EXPECT_GE(program.optimizer->skipped_steps(), 2);
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserLossScale,
                         ::testing::ValuesIn(testing::settings_where([](const auto& setting) {
                           return setting.type == at::kFloat;  // these programs have their own
                         })),
                         testing::name_of_setting);

class UserLossScaleOfSeveralRanks : public testing::UserProgram {};

TEST_P(UserLossScaleOfSeveralRanks, ThatDiffersIsRefusedWithBothValues) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    const double scale = rank.is_last() ? 2048 : 1024;
    program.backward(rank.gradient(), scale);
    expect_refused([&] { program.optimizer->step(StepOptions{.loss_scale = scale}); },
                   AllOf(HasSubstr("loss_scale"), HasSubstr("1024"), HasSubstr("2048")));
    expect_values(program.w, 64, "after a refused step");
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserLossScaleOfSeveralRanks,
                         ::testing::ValuesIn(testing::settings_where([](const auto& setting) {
                           return setting.type == at::kFloat && setting.world_size > 1;
                         })),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun

// Loss scaling with float16 parameters, constant and dynamic.
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>

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

ShardedOptions with_dynamic_scale(const Rank& rank, float initial = 65536,
                                  int64_t growth_interval = 3) {
  ShardedOptions options = rank.options();
  options.dynamic_loss_scale = {.initial = initial, .growth_interval = growth_interval};
  return options;
}

at::Tensor loss_of(const HalfProgram& program, double gradient) {
  return (program.w * gradient).sum();
}

// The largest gradient of any rank is world size times the scale, and float16 ends at 65,504.
TEST_P(UserLossScale, OfTheOptimizerFallsAndRises) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank, with_dynamic_scale(rank));
    double expected = 65536;
    int good_steps = 0, skipped_steps = 0, good_in_a_row = 0;
    for (int step = 0; step < 16; ++step) {
      program.optimizer->zero_grad();
      program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
      program.optimizer->step();
      const bool skips = expected * rank.world_size() > 65504;
      const auto outcomes = program.optimizer->take_outcomes();
      ASSERT_EQ(outcomes.size(), 1);
      EXPECT_EQ(outcomes[0].skipped, skips) << "step " << step;
      EXPECT_EQ(outcomes[0].loss_scale, expected) << "step " << step;
      good_in_a_row = skips ? 0 : good_in_a_row + 1;
      good_steps += skips ? 0 : 1;
      skipped_steps += skips ? 1 : 0;
      if (skips) expected /= 2;
      if (good_in_a_row == 3) expected *= 2, good_in_a_row = 0;
      EXPECT_EQ(program.optimizer->loss_scale().scale, expected) << "step " << step;
      EXPECT_EQ(program.optimizer->loss_scale().good_steps, good_in_a_row) << "step " << step;
      expect_values(program.w, 64 - good_steps * rank.mean_gradient(), "as without a scale");
    }
    EXPECT_GE(good_steps, 10);
    EXPECT_GE(skipped_steps, 2);
  });
}

TEST_P(UserLossScale, OfTheOptimizerHoldsForAllPassesOfAStep) {
  on_ranks([](Rank& rank) {
    ShardedOptions options = with_dynamic_scale(rank, 256, 1);
    options.max_grad_norm = 1e9;
    HalfProgram program(rank, options);
    for (int step = 1; step <= 3; ++step) {
      program.optimizer->zero_grad();
      {
        const auto guard = program.optimizer->no_sync();
        for (int pass = 0; pass < 2; ++pass)
          program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
      }
      program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
      program.optimizer->step();
      expect_values(program.w, 64 - step * rank.mean_gradient());
      EXPECT_NEAR(program.optimizer->report().gradient_norm, 8 * rank.mean_gradient(), 1e-6);
    }
    EXPECT_EQ(program.optimizer->loss_scale().scale, 2048);
  });
}

TEST_P(UserLossScale, OfTheOptimizerIsThatOfTheBackwardPass) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank, with_dynamic_scale(rank, 256, 1));
    const at::Tensor early = program.optimizer->scale_loss(loss_of(program, rank.gradient()));
    program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
    program.optimizer->step();  // 512 from now on
    program.optimizer->zero_grad();
    const at::Tensor other = program.optimizer->scale_loss(loss_of(program, 0));
    (early + other).backward();
    program.optimizer->step();
    expect_values(program.w, 64 - 2 * rank.mean_gradient());
  });
}

TEST_P(UserLossScale, OfTheOptimizerMissesItsLoss) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank, with_dynamic_scale(rank, 256, 100));
    program.backward(rank.gradient(), 1);
    expect_refused([&] { program.optimizer->step(); }, HasSubstr("scale_loss(loss).backward()"));
    expect_values(program.w, 64, "after a refused step");
    program.optimizer->zero_grad();
    program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
    expect_refused([&] { program.optimizer->step(StepOptions{.loss_scale = 256}); },
                   HasSubstr("give the loss to scale_loss() alone"));
    program.optimizer->step();
    expect_values(program.w, 64 - rank.mean_gradient());
    // The step before had one; this one has not.
    program.optimizer->zero_grad();
    program.backward(rank.gradient(), 1);
    expect_refused([&] { program.optimizer->step(); }, HasSubstr("since the last step"));
  });
}

TEST_P(UserLossScale, OfTheOptimizerIsRefusedWhereNothingIsSkipped) {
  on_ranks([](Rank& rank) {
    const auto make = [&](const std::function<void(ShardedOptions&)>& change) {
      ShardedOptions options = with_dynamic_scale(rank);
      change(options);
      return HalfProgram(rank, options);
    };
    expect_refused([&] { make([](ShardedOptions& o) { o.dynamic_loss_scale->initial = 0; }); },
                   HasSubstr("dynamic_loss_scale.initial"));
    expect_refused([&] { make([](ShardedOptions& o) { o.dynamic_loss_scale->growth = 1; }); },
                   HasSubstr("dynamic_loss_scale.growth = 1"));
    HalfProgram program(rank, with_dynamic_scale(rank, 256));
    auto& group = static_cast<FusedbunOptions&>(program.optimizer->param_groups()[0].options());
    group.nonfinite(Nonfinite::propagate);
    program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
    expect_refused([&] { program.optimizer->step(); }, HasSubstr("needs nonfinite = skip"));
  });
}

TEST_P(UserLossScale, OfTheOptimizerIsInItsArchive) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank, with_dynamic_scale(rank, 256, 2));
    for (int step = 0; step < 3; ++step) {
      program.optimizer->zero_grad();
      program.optimizer->scale_loss(loss_of(program, rank.gradient())).backward();
      program.optimizer->step();
    }
    torch::serialize::OutputArchive saved;
    program.optimizer->save(saved);
    std::stringstream stream;
    saved.save_to(stream);
    torch::serialize::InputArchive read;
    read.load_from(stream);
    HalfProgram again(rank, with_dynamic_scale(rank, 4, 2));
    again.optimizer->load(read);
    EXPECT_EQ(again.optimizer->loss_scale(), (LossScaleState{.scale = 512, .good_steps = 1}));
  });
}

TEST_P(UserLossScale, WithoutADynamicOneLeavesTheLossAsItIs) {
  on_ranks([](Rank& rank) {
    HalfProgram program(rank);
    const at::Tensor loss = loss_of(program, rank.gradient());
    EXPECT_TRUE(program.optimizer->scale_loss(loss).is_same(loss));
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

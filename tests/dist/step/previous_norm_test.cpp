// Clipping by the norm of the step before, where buckets are stepped in backward: against one process that clips by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "fusedbun/core/error.h"
#include "local_ranks.h"
#include "random_model.h"

namespace fusedbun {
namespace {

using testing::Gradients;

constexpr int kSteps = 6;
const std::vector<std::vector<int64_t>> kShapes = {{17, 6}, {3, 4}, {11}, {}, {4, 2, 3}, {24, 5}};

double norm_of(const std::vector<at::Tensor>& gradients) {
  double squares = 0;
  for (const at::Tensor& g : gradients) squares += g.to(at::kDouble).square().sum().item<double>();
  return std::sqrt(squares);
}

class PreviousNorm : public ::testing::TestWithParam<int> {};

TEST_P(PreviousNorm, ClipsTheStepAfterIt) {
  const int world_size = GetParam();
  const uint64_t seed = testing::seed_from_environment(20261127);
  SCOPED_TRACE("FUSEDBUN_TEST_SEED=" + std::to_string(seed));
  const auto parameters = testing::random_parameters(kShapes, at::kDouble, seed);
  std::vector<Gradients> of_ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    of_ranks.push_back(testing::random_gradients(kShapes, at::kDouble, kSteps, false,
                                                 seed + 10 + static_cast<uint64_t>(rank)));
  }
  Gradients clipped = of_ranks[0];
  double norm = 0, max_norm = 0;
  int clips = 0;
  for (auto& step : clipped) {
    for (size_t p = 0; p < step.size(); ++p) {
      for (int rank = 1; rank < world_size; ++rank)
        step[p] = step[p] + of_ranks[rank][static_cast<size_t>(&step - clipped.data())][p];
      step[p] = step[p] / static_cast<double>(world_size);
    }
    const double own = norm_of(step);
    if (max_norm == 0) max_norm = 0.9 * own;
    const double factor = norm > 0 ? std::min(1.0, max_norm / norm) : 1;
    clips += factor < 1 ? 1 : 0;
    for (at::Tensor& g : step) g = g * factor;
    norm = own;
  }
  ASSERT_GT(clips, 0);
  const auto options = FusedbunOptions::recommended(1e-2).nonfinite(Nonfinite::propagate);
  const auto expected = testing::train_alone(parameters, clipped, options);
  for (const bool window : {false, true}) {
    testing::run_ranks(world_size, [&](comm::Communicator& ranks) {
      auto model = testing::as_model(parameters);
      ShardedFusedbun optimizer({&ranks, &ranks}, model, options,
                                {.min_rows_per_rank = 1,
                                 .bucket_bytes = 512,
                                 .max_grad_norm = max_norm,
                                 .clip_by_previous_norm = true,
                                 .step_in_backward = true,
                                 .host_window = window});
      EXPECT_TRUE(optimizer.capabilities().clips_gradients);
      for (int step = 0; step < kSteps; ++step) {
        for (size_t p = 0; p < model.size(); ++p) {
          // Through autograd, so that buckets are stepped while it runs.
          (model[p].value() * of_ranks[ranks.rank()][step][p]).sum().backward();
        }
        optimizer.step();
      }
      optimizer.finish();
      for (size_t p = 0; p < expected.size(); ++p) {
        const at::Tensor value = model[p].value().detach();
        EXPECT_TRUE(at::allclose(value, expected[p], 1e-11, 1e-13)) << "p" << p;
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, PreviousNorm, ::testing::Values(1, 2, 3));

TEST(ClipByPreviousNorm, IsForStepInBackwardAlone) {
  testing::run_ranks(1, [](comm::Communicator& ranks) {
    auto model = testing::as_model(testing::random_parameters(kShapes, at::kFloat, 1));
    try {
      ShardedFusedbun optimizer({&ranks, &ranks}, model, FusedbunOptions::recommended(1e-2),
                                {.max_grad_norm = 1, .clip_by_previous_norm = true});
      FAIL() << "it was taken";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(),
                  ::testing::HasSubstr("clip_by_previous_norm is for step_in_backward"));
    }
  });
}

}  // namespace
}  // namespace fusedbun

// Sharded training against one process, on random models. The stream of gradients goes to one rank and zeros to the others,
// with divisor 1, so that the sum is exact and any difference is the sharding's.
#include <gtest/gtest.h>

#include <random>

#include "local_ranks.h"
#include "random_model.h"

namespace fusedbun {
namespace {

using testing::Gradients;

struct Case {
  int world_size;
  const char* preset;
  at::ScalarType type;
  double tolerance;  ///< 0: bit for bit
  MatrixView view = MatrixView::leading;
  LowPrecision low_precision = LowPrecision::master;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.preset << " over " << c.world_size << " ranks in " << c10::toString(c.type);
}

/// Steps this rank's replica; `owner` alone has gradients that are not zero.
void train_sharded(ShardedFusedbun& optimizer,
                   torch::OrderedDict<std::string, torch::Tensor>& model,
                   const Gradients& gradients, int rank, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (const auto& step : gradients) {
    const int owner = static_cast<int>(random() % optimizer.shard_plan().options.world_size);
    for (size_t p = 0; p < step.size(); ++p) {
      at::Tensor& parameter = model[p].value();
      if (!step[p].defined()) {
        parameter.mutable_grad().reset();
      } else {
        parameter.mutable_grad() = rank == owner ? step[p].clone() : at::zeros_like(step[p]);
      }
    }
    optimizer.step();
  }
}

class ShardedEquality : public ::testing::TestWithParam<Case> {};

TEST_P(ShardedEquality, EqualsOneProcess) {
  const Case& c = GetParam();
  const uint64_t base = testing::seed_from_environment(20261122);
  for (uint64_t seed = base; seed < base + 4; ++seed) {
    SCOPED_TRACE("FUSEDBUN_TEST_SEED=" + std::to_string(seed));
    auto shapes = testing::random_shapes(seed);
    if (c.view == MatrixView::last_two) {
      shapes.push_back({5, 6, 7});
      shapes.push_back({2, 3, 4, 5});
    }
    const auto parameters = testing::random_parameters(shapes, c.type, seed);
    const Gradients gradients = testing::random_gradients(shapes, c.type, 6, seed % 4 >= 2, seed);
    const auto options = FusedbunOptions::of_preset(c.preset, 0.01)
                             .centralize(seed % 4 < 2)
                             .matrix_view(c.view)
                             .low_precision(c.low_precision);
    testing::train_alone(parameters, gradients, options, [&](Fusedbun& alone, auto& expected) {
      testing::run_ranks(c.world_size, [&](comm::Communicator& communicator) {
        auto model = testing::as_model(parameters);
        ShardedFusedbun optimizer({&communicator, &communicator}, model, options,
                                  {.min_rows_per_rank = static_cast<int64_t>(1 + seed % 4),
                                   .bucket_bytes = 4096,
                                   .in_place_bytes = seed % 4 == 1 ? 1 : 200,
                                   .gradient_divisor = 1.0,
                                   .host_window = seed % 2 == 0});
        EXPECT_EQ(optimizer.shares_memory(), seed % 2 == 0 && c.world_size > 1);
        EXPECT_EQ(optimizer.state_bytes(), optimizer.planned_state_bytes());
        train_sharded(optimizer, model, gradients, communicator.rank(), seed);
        for (size_t p = 0; p < expected.size(); ++p) {
          const at::Tensor value = model[p].value().detach();
          if (c.tolerance == 0) {
            EXPECT_TRUE(at::equal(value, expected[p])) << "p" << p << " " << value.sizes();
          } else {
            const double largest = expected[p].abs().max().template item<double>();
            const double error = (value - expected[p]).abs().max().template item<double>();
            EXPECT_LE(error, c.tolerance * largest) << "p" << p << " " << value.sizes();
          }
        }
        EXPECT_EQ(testing::state_difference(optimizer, alone, expected, c.tolerance), "");
        optimizer.finish();
      });
    });
  }
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const int world_size : {1, 2, 3, 4, 7, 8}) {
    // Maxima and elementwise statistics do not depend on the order of rows: the same bits.
    list.push_back({world_size, "sm3", at::kFloat, 0});
    list.push_back({world_size, "sm3", at::kDouble, 0});
    list.push_back({world_size, "elementwise", at::kFloat, 0});
    list.push_back({world_size, "elementwise", at::kDouble, 0});
    // Column sums are added in an order that depends on the world size: float64 rounding, 1e-16 each.
    list.push_back({world_size, "recommended", at::kDouble, 1e-12});
    list.push_back({world_size, "compact", at::kDouble, 1e-12});
    list.push_back({world_size, "lean", at::kDouble, 1e-12});
    // The same sums rounded to float32 may fall on another side: a few units in the last place (6e-8) over six steps.
    list.push_back({world_size, "recommended", at::kFloat, 2e-6});
    // Stacks of matrices, more and fewer of them than ranks.
    list.push_back({world_size, "sm3", at::kFloat, 0, MatrixView::last_two});
    list.push_back({world_size, "compact", at::kDouble, 1e-12, MatrixView::last_two});
    list.push_back({world_size, "lean", at::kDouble, 1e-12, MatrixView::last_two});
    // Random bits belong to an element of a parameter, wherever it is stepped.
    for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
      list.push_back({world_size, "sm3", at::kBFloat16, 0, MatrixView::leading, kept});
      list.push_back({world_size, "elementwise", at::kBFloat16, 0, MatrixView::last_two, kept});
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(Presets, ShardedEquality, ::testing::ValuesIn(cases()),
                         [](const auto& info) {
                           return std::string(info.param.preset) + "_" +
                                  c10::toString(info.param.type) + "_" +
                                  std::to_string(info.param.world_size) +
                                  (info.param.view == MatrixView::last_two ? "_stacks" : "") +
                                  (info.param.low_precision == LowPrecision::master
                                       ? ""
                                       : "_" + std::string(name_of(info.param.low_precision)));
                         });

// Gradients that differ on every rank: the average is the float32 sum in rank order, divided once.
TEST(ShardedAverage, IsTheSumInRankOrderDividedOnce) {
  const uint64_t seed = testing::seed_from_environment(7);
  const auto shapes = testing::random_shapes(seed);
  const auto parameters = testing::random_parameters(shapes, at::kFloat, seed);
  const auto options = FusedbunOptions::sm3(0.01);
  for (const int world_size : {2, 3, 5}) {
    std::vector<Gradients> streams;
    for (int rank = 0; rank < world_size; ++rank) {
      streams.push_back(testing::random_gradients(shapes, at::kFloat, 3, false, seed + 100 * rank));
    }
    Gradients average = streams[0];
    for (size_t s = 0; s < average.size(); ++s) {
      for (size_t p = 0; p < shapes.size(); ++p) {
        at::Tensor sum = streams[0][s][p].clone();
        for (int rank = 1; rank < world_size; ++rank) sum.add_(streams[rank][s][p]);
        average[s][p] = sum.div_(static_cast<double>(world_size));
      }
    }
    const auto expected = testing::train_alone(parameters, average, options);
    testing::run_ranks(world_size, [&](comm::Communicator& communicator) {
      auto model = testing::as_model(parameters);
      ShardedFusedbun optimizer({&communicator, &communicator}, model, options,
                                {.min_rows_per_rank = 1, .host_window = world_size != 3});
      for (const auto& step : streams[communicator.rank()]) {
        for (size_t p = 0; p < step.size(); ++p) model[p].value().mutable_grad() = step[p].clone();
        optimizer.step();
      }
      optimizer.finish();
      for (size_t p = 0; p < expected.size(); ++p) {
        EXPECT_TRUE(at::equal(model[p].value().detach(), expected[p])) << "p" << p;
      }
    });
  }
}

class ShardedTransport
    : public ::testing::TestWithParam<std::tuple<plan::GradientTransport, at::ScalarType>> {};

TEST_P(ShardedTransport, GivesOneProcessesBitsWhenItIsAskedFor) {
  const auto [transport, type] = GetParam();
  const uint64_t seed = testing::seed_from_environment(11);
  SCOPED_TRACE("FUSEDBUN_TEST_SEED=" + std::to_string(seed));
  const auto shapes = testing::random_shapes(seed);
  const auto parameters = testing::random_parameters(shapes, type, seed);
  const Gradients gradients = testing::random_gradients(shapes, type, 4, true, seed);
  const auto options = FusedbunOptions::sm3(0.01);
  const auto expected = testing::train_alone(parameters, gradients, options);
  for (const int world_size : {1, 2, 3}) {
    testing::run_ranks(world_size, [&](comm::Communicator& communicator) {
      auto model = testing::as_model(parameters);
      ShardedFusedbun optimizer({&communicator, &communicator}, model, options,
                                {.min_rows_per_rank = 1,
                                 .bucket_bytes = 4096,
                                 .in_place_bytes = 200,
                                 .gradient_divisor = 1.0,
                                 .transport = transport});
      EXPECT_EQ(optimizer.shares_memory(), transport == plan::GradientTransport::shared_memory);
      train_sharded(optimizer, model, gradients, communicator.rank(), seed);
      optimizer.finish();
      for (size_t p = 0; p < expected.size(); ++p) {
        EXPECT_TRUE(at::equal(model[p].value().detach(), expected[p])) << "p" << p;
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Forced, ShardedTransport,
    ::testing::Combine(::testing::Values(plan::GradientTransport::collective,
                                         plan::GradientTransport::point_to_point,
                                         plan::GradientTransport::shared_memory),
                       ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf)),
    [](const auto& info) {
      return std::string(plan::name_of(std::get<0>(info.param))) + "_" +
             c10::toString(std::get<1>(info.param));
    });

TEST(ShardedTransport, IsRefusedOnEveryRankWhereItCannotCarryTheJob) {
  testing::run_ranks(2, [](comm::Communicator& communicator) {
    auto model = testing::as_model({at::zeros({8, 4}).t()});
    const auto construct = [&](ShardedOptions options) {
      ShardedFusedbun({&communicator, &communicator}, model, FusedbunOptions::sm3(0.01), options);
    };
    EXPECT_THROW(construct({.transport = plan::GradientTransport::shared_memory}), ConfigError);
    EXPECT_THROW(construct({.gradient_wire = GradientWire::bf16,
                            .transport = plan::GradientTransport::collective}),
                 ConfigError);
    EXPECT_THROW(construct({.update_wire = UpdateWire::bf16,
                            .transport = plan::GradientTransport::collective}),
                 ConfigError);
  });
}

}  // namespace
}  // namespace fusedbun

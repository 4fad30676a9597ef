// Parameters written through write_parameters(): once, on all ranks.
#include <torch/serialize.h>

#include <sstream>

#include "fusedbun/core/error.h"
#include "user_program.h"

namespace fusedbun {
namespace {

using testing::expect_refused;
using testing::expect_values;
using ::testing::HasSubstr;
using testing::Model;
using testing::Program;
using testing::Rank;

class UserWrites : public testing::UserProgram {};

TEST_P(UserWrites, AreDoneOnceAndReachEveryRank) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    double expected = 8;
    for (int step = 0; step < 3; ++step) {
      program.train();
      expected = (expected - rank.mean_gradient()) / 2;
      int calls = 0;
      program.optimizer.write_parameters([&] {
        ++calls;
        const at::NoGradGuard no_grad;
        for (at::Tensor& parameter : program.model->parameters()) parameter.mul_(0.5);
      });
      EXPECT_EQ(calls, rank.rank() == 0 ? 1 : 0);
      program.model->expect_values(expected, "written");
    }
    program.train();
    program.model->expect_values(expected - rank.mean_gradient(), "trained on");
  });
}

TEST_P(UserWrites, OfOneParameterLeaveTheOthers) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.write_parameters([&] {
      const at::NoGradGuard no_grad;
      program.model->large.fill_(3);
    });
    program.train();
    expect_values(program.model->small, 8 - 2 * rank.mean_gradient());
    expect_values(program.model->large, 3 - rank.mean_gradient());
  });
}

TEST_P(UserWrites, ThroughDataReachEveryRank) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.write_parameters([&] { program.model->small.data().clamp_(-1, 1); });
    program.train();
    expect_values(program.model->small, 1 - rank.mean_gradient());
    expect_values(program.model->large, 8 - 2 * rank.mean_gradient());
  });
}

TEST_P(UserWrites, MayLoadTheModelOnRankZeroAlone) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.write_parameters([&] {
      std::stringstream file;
      torch::save(std::make_shared<Model>(rank.type(), 5), file);
      torch::load(program.model, file);
    });
    program.model->expect_values(5, "loaded");
    program.train();
    program.model->expect_values(5 - rank.mean_gradient(), "trained on");
  });
}

// The others wait for what rank 0 writes: they hear that it could not.
TEST_P(UserWrites, ThatFailOnRankZeroFailOnAll) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    expect_refused(
        [&] { program.optimizer.write_parameters([] { throw ConfigError("no such file"); }); },
        HasSubstr("no such file"));
    program.train();
    program.model->expect_values(8 - 2 * rank.mean_gradient());
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserWrites, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun

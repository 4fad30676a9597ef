// The optimizer's calls in the orders in which programs make them: twice, between others, on one rank only.
#include <torch/serialize.h>

#include <limits>
#include <sstream>

#include "fusedbun/core/error.h"
#include "user_program.h"

namespace fusedbun {
namespace {

using testing::expect_refused;
using ::testing::HasSubstr;
using testing::plain_sgd;
using testing::Program;
using testing::Rank;

class UserCalls : public testing::UserProgram {};

void halve(Program& program) {
  const at::NoGradGuard no_grad;
  for (at::Tensor& parameter : program.model->parameters()) parameter.mul_(0.5);
}

TEST_P(UserCalls, FinishMayComeTwiceAndTrainingMayGoOn) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.optimizer.finish();
    program.train();
    program.optimizer.finish();
    program.optimizer.finish();
    program.train();
    program.optimizer.finish();
    program.model->expect_values(8 - 2 * rank.mean_gradient());
  });
}

TEST_P(UserCalls, ABackwardPassThatIsNeverSteppedEndsWithTheOptimizer) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.finish();
    if (rank.is_last()) program.model->backward(1);
    rank.barrier();
    program.model->backward(1);
  });
}

TEST_P(UserCalls, ParametersMayBeWrittenTwiceAndBeforeTheFirstStep) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.optimizer.write_parameters([&] { halve(program); });
    program.optimizer.write_parameters([&] { halve(program); });
    program.model->expect_values(2);
    program.train();
    program.model->expect_values(2 - rank.mean_gradient());
  });
}

TEST_P(UserCalls, ParametersMayBeWrittenBetweenBackwardAndStep) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.model->backward(rank.gradient());
    program.optimizer.write_parameters([&] { halve(program); });
    program.optimizer.step();
    program.model->expect_values(4 - rank.mean_gradient());
  });
}

TEST_P(UserCalls, ASecondStepWithoutABackwardPassChangesNothing) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.step({.loss_scale = 4});
    program.model->expect_values(8 - rank.mean_gradient());
  });
}

TEST_P(UserCalls, AStepUnderNoSyncOnOneRankIsRefusedOnAll) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    const auto step = [&] {
      program.model->backward(rank.gradient());
      if (!rank.is_last()) return void(program.optimizer.step());
      const auto guard = program.optimizer.no_sync();
      program.optimizer.step();
    };
    expect_refused(step, HasSubstr("no_sync()"));
    program.train();
    program.model->expect_values(8 - rank.mean_gradient());
  });
}

TEST_P(UserCalls, AClosureRunsBeforeEachStepWithAScale) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int step = 1; step <= 2; ++step) {
      const at::Tensor loss = program.optimizer.step({.loss_scale = 2}, [&] {
        program.optimizer.zero_grad();
        program.model->backward(2 * rank.gradient());
        return at::ones({});
      });
      EXPECT_EQ(loss.item<float>(), 1);
      program.model->expect_values(8 - step * rank.mean_gradient());
    }
  });
}

class UserCallsOfSeveralRanks : public testing::UserProgram {};

// The ranks' numbers of batches differ, and one of them already waits in its backward pass for what the other does not send.
TEST_P(UserCallsOfSeveralRanks, AnotherCallThanBackwardIsNamedWithStepInBackward) {
  for (const bool finishes : {true, false}) {
    on_ranks([&](Rank& rank) {
      ShardedOptions sharded = rank.options();
      sharded.step_in_backward = true;
      Program program(rank, plain_sgd().nonfinite(Nonfinite::propagate), sharded);
      program.train();
      const auto next = [&] {
        if (!rank.is_last()) return program.train();
        finishes ? program.optimizer.finish()
                 : program.optimizer.write_parameters([&] { halve(program); });
      };
      // Local ranks meet in the order of their operations; over a window in an agreement.
      expect_refused(next, ::testing::AnyOf(HasSubstr("called backward() after 1 step"),
                                            HasSubstr("barrier")));
    });
  }
}

// A second pass makes buckets dirty, which are sent again: nobody waits for that before all have agreed to step.
TEST_P(UserCallsOfSeveralRanks, AnotherCallThanAStepWithDirtyBucketsIsNamed) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    const auto next = [&] {
      if (rank.is_last()) return program.optimizer.finish();
      program.model->backward(rank.gradient());
      program.model->backward(rank.gradient());
      program.optimizer.step();
    };
    expect_refused(next, HasSubstr("called finish() after 1 step"));
  });
}

TEST_P(UserCallsOfSeveralRanks, AHessianDiagonalOnOneRankIsRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank, FusedbunOptions::recommended(0.1).prepare_hessian(true).hessian_source(
                              HessianSource::external));
    if (rank.is_last()) {
      program.optimizer.set_hessian_diagonal(program.model->large,
                                             at::ones_like(program.model->large));
    }
    expect_refused([&] { program.train(); },
                   ::testing::AllOf(HasSubstr("'large'"), HasSubstr("Hessian diagonal")));
  });
}

// It is of one step, also if that step is skipped: the parameter then moves as with a diagonal of zeros.
TEST_P(UserCalls, AHessianDiagonalDoesNotOutliveASkippedStep) {
  on_ranks([](Rank& rank) {
    const auto options = FusedbunOptions::recommended(0.1).prepare_hessian(true).hessian_source(
        HessianSource::external);
    Program skipped(rank, options), plain(rank, options);
    skipped.optimizer.set_hessian_diagonal(skipped.model->large,
                                           at::full_like(skipped.model->large, 9));
    skipped.model->backward(std::numeric_limits<double>::infinity());
    skipped.optimizer.step();
    EXPECT_TRUE(skipped.optimizer.report().skipped);
    skipped.train();
    plain.train();
    EXPECT_TRUE(at::equal(skipped.model->large, plain.model->large));
  });
}

TEST_P(UserCallsOfSeveralRanks, AStateLoadedOnOneRankIsNamed) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    std::stringstream saved;
    torch::save(program.optimizer, saved);
    program.train();
    if (rank.is_last()) torch::load(program.optimizer, saved);
    expect_refused([&] { program.train(); }, HasSubstr("called step() after"));
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserCalls, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);
INSTANTIATE_TEST_SUITE_P(Everywhere, UserCallsOfSeveralRanks,
                         ::testing::ValuesIn(testing::settings_of_several_ranks()),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun

// What programs do to parameters: load them, move them to another type, replace their storage, write them between two steps,
// clip them, freeze and unfreeze them. A parameter is what the user's tensor is now, or step() says that it cannot be.
#include <torch/serialize.h>

#include <sstream>

#include "user_program.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using testing::expect_refused;
using testing::expect_values;
using ::testing::HasSubstr;
using testing::Model;
using testing::names_a_parameter;
using testing::plain_sgd;
using testing::Program;
using testing::Rank;

class UserParameters : public testing::UserProgram {};
class UserParametersOfSeveralRanks : public testing::UserProgram {};
/// For writes that a host window refuses.
class UserParametersOverMessages : public testing::UserProgram {};

void load_values(const std::shared_ptr<Model>& model, double value) {
  std::stringstream file;
  torch::save(std::make_shared<Model>(model->small.scalar_type(), value), file);
  std::shared_ptr<Model> target = model;
  torch::load(target, file);
}

/// The column sums of several ranks round otherwise than those of one.
void expect_close(const Model& model, const Model& alone) {
  const double unit = model.small.scalar_type() == at::kBFloat16 ? 0x1p-7 : 1e-5;
  EXPECT_TRUE(at::allclose(model.small, alone.small, unit, 0)) << model.small[0][0];
  EXPECT_TRUE(at::allclose(model.large, alone.large, unit, 0)) << model.large[0][0];
}

const auto kSaysHowToWrite = AllOf(HasSubstr("host_window = false"), HasSubstr("write_parameters"));

// ---- storage -----------------------------------------------------------------------------------

// torch::load(model), torch::load(optimizer): the order in which LibTorch programs resume.
TEST_P(UserParameters, LoadedAfterConstructionAreTrainedFrom) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    load_values(program.model, 5);
    program.model->expect_values(5, "loaded");
    for (int step = 1; step <= 3; ++step) {
      program.train();
      program.model->expect_values(5 - step * rank.mean_gradient(), "after a step");
    }
  });
}

TEST_P(UserParameters, LoadedBetweenTwoStepsAreTrainedFrom) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.train();
    load_values(program.model, 5);
    program.train();
    program.train();
    program.model->expect_values(5 - 2 * rank.mean_gradient());
  });
}

// The step of `compact` is as long as the parameter's norm says.
TEST_P(UserParameters, OfALoadedModelHaveAnotherNorm) {
  const auto options = FusedbunOptions::compact(0.125);
  Model alone(GetParam().type, 80);
  Fusedbun reference(alone.parameters(), options);
  const double mean = (GetParam().world_size + 1) / 2.0;
  for (int step = 0; step < 2; ++step) {
    reference.zero_grad();
    alone.backward(mean);
    reference.step();
  }
  on_ranks([&](Rank& rank) {
    Program program(rank, options);
    load_values(program.model, 80);
    program.train();
    program.train();
    expect_close(*program.model, alone);
  });
}

TEST_P(UserParameters, WithNewStorageAreTrainedFrom) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    for (const at::Tensor& parameter : program.model->tensors()) {
      parameter.set_data(at::full_like(parameter, 3));
    }
    for (int step = 1; step <= 2; ++step) {
      program.train();
      program.model->expect_values(3 - step * rank.mean_gradient());
    }
  });
}

// Evaluation with averaged weights: their storage comes in and the trained one comes back.
TEST_P(UserParameters, SwappedForEvaluationComeBack) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int step = 1; step <= 3; ++step) {
      program.train();
      std::vector<at::Tensor> trained;
      for (const at::Tensor& parameter : program.model->tensors()) {
        trained.push_back(parameter.variable_data());
        parameter.set_data(at::full_like(parameter, 100));
      }
      program.model->expect_values(100, "while evaluated");
      for (size_t p = 0; p < trained.size(); ++p) {
        program.model->tensors()[p].set_data(trained[p]);
      }
      program.model->expect_values(8 - step * rank.mean_gradient(), "back");
    }
    program.train();
    program.model->expect_values(8 - 4 * rank.mean_gradient(), "trained on");
  });
}

TEST_P(UserParametersOfSeveralRanks, WithNewStorageOnOneRankAreRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    if (rank.is_last()) program.model->large.set_data(at::full_like(program.model->large, 3));
    expect_refused([&] { program.train(); }, HasSubstr("'large'"));
  });
}

TEST_P(UserParameters, OfAnotherTypeAreRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.model->to(at::kDouble);
    expect_refused([&] { program.train(); },
                   AllOf(names_a_parameter(), AnyOf(HasSubstr("float64"), HasSubstr("Double")),
                         HasSubstr("optimizer")));
  });
}

TEST_P(UserParameters, OfAnotherShapeAreRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.optimizer.zero_grad();
    program.model->small.set_data(at::ones({4, 8}, rank.type()));
    expect_refused([&] { program.train(); },
                   AllOf(HasSubstr("'small'"), HasSubstr("[4, 8]"), HasSubstr("optimizer")));
  });
}

// ---- values ------------------------------------------------------------------------------------

// Halved between steps: 8 - m, half of it, and so on. A window holds one copy for all ranks, which each of them would halve.
TEST_P(UserParameters, WrittenByAllRanksAreFollowedOrRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    double expected = 8;
    for (int step = 0; step < 3; ++step) {
      program.train();
      expected -= rank.mean_gradient();
      program.model->expect_values(expected);
      rank.barrier();  // where memory is shared, another rank's write would be read
      {
        const at::NoGradGuard no_grad;
        for (at::Tensor& parameter : program.model->parameters()) parameter.mul_(0.5);
      }
      expected *= 0.5;
      if (rank.shares_memory()) {
        return expect_refused([&] { program.train(); },
                              AllOf(names_a_parameter(), kSaysHowToWrite));
      }
    }
  });
}

TEST_P(UserParameters, CopiedIntoBeforeTheFirstStepAreFollowedOrRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    {
      const at::NoGradGuard no_grad;
      program.model->small.copy_(at::full({8, 8}, 2.0));
    }
    if (rank.shares_memory()) {
      return expect_refused([&] { program.train(); }, AllOf(HasSubstr("'small'"), kSaysHowToWrite));
    }
    program.train();
    expect_values(program.model->small, 2 - rank.mean_gradient());
    expect_values(program.model->large, 8 - rank.mean_gradient());
  });
}

TEST_P(UserParametersOfSeveralRanks, WrittenOnOneRankAreRefused) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    if (rank.is_last()) {
      const at::NoGradGuard no_grad;
      program.model->large.mul_(0.5);
    }
    expect_refused([&] { program.train(); }, HasSubstr("'large'"));
  });
}

// The step of `compact` is as long as the norm that the write left.
TEST_P(UserParametersOverMessages, HaveAnotherNormWhenTheyWereWritten) {
  const auto options = FusedbunOptions::compact(0.125);
  const auto write = [](Model& model) {
    const at::NoGradGuard no_grad;
    model.small.mul_(16);
  };
  Model alone(GetParam().type, 8);
  Fusedbun reference(alone.parameters(), options);
  for (int step = 0; step < 3; ++step) {
    reference.zero_grad();
    alone.backward((GetParam().world_size + 1) / 2.0);
    reference.step();
    if (step == 0) write(alone);
  }
  on_ranks([&](Rank& rank) {
    Program program(rank, options);
    for (int step = 0; step < 3; ++step) {
      program.train();
      if (step == 0) write(*program.model);
    }
    expect_close(*program.model, alone);
  });
}

// Weight clipping as WGAN does it, through data(), whose version counter is its own.
TEST_P(UserParametersOverMessages, ClampedAfterEachStepStayWithinTheirBounds) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    double expected = 8;
    for (int step = 0; step < 4; ++step) {
      program.train();
      for (const at::Tensor& parameter : program.model->tensors()) parameter.data().clamp_(-1, 1);
      expected = std::clamp(expected - rank.mean_gradient(), -1.0, 1.0);
      program.model->expect_values(expected, "clamped after step " + std::to_string(step));
    }
    program.train();
    program.model->expect_values(expected - rank.mean_gradient(), "not clamped");
  });
}

// What a step writes is seen by autograd, as with every optimizer of LibTorch.
TEST_P(UserParameters, WrittenByAStepInvalidateAnOlderGraph) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    const at::Tensor loss =
        (program.model->small * program.model->small).sum() + program.model->large.sum();
    loss.backward({}, /*retain_graph=*/true);
    program.optimizer.step();
    try {
      loss.backward();
      ADD_FAILURE() << "autograd went through weights that it had not seen";
    } catch (const c10::Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("modified by an inplace operation"));
    }
  });
}

// ---- frozen ------------------------------------------------------------------------------------

TEST_P(UserParameters, UnfrozenLaterAreTrainedFromThenOn) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 8);
    model.large.set_requires_grad(false);
    ShardedFusedbun optimizer(rank.channels(), model.named_parameters(), plain_sgd(),
                              rank.options());
    const auto train = [&] {
      optimizer.zero_grad();
      model.backward(rank.gradient());
      optimizer.step();
    };
    train();
    expect_values(model.small, 8 - rank.mean_gradient());
    expect_values(model.large, 8, "frozen");
    model.large.set_requires_grad(true);
    train();
    train();
    expect_values(model.small, 8 - 3 * rank.mean_gradient());
    expect_values(model.large, 8 - 2 * rank.mean_gradient(), "unfrozen");
  });
}

TEST_P(UserParameters, OfAGroupUnfrozenLaterAreTrainedFromThenOn) {
  on_ranks([](Rank& rank) {
    Model model(rank.type(), 8);
    model.large.set_requires_grad(false);
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<at::Tensor>{model.small});
    groups.emplace_back(std::vector<at::Tensor>{model.large},
                        std::make_unique<FusedbunOptions>(plain_sgd(0.5)));
    ShardedFusedbun optimizer(rank.channels(), groups, plain_sgd(), rank.options());
    model.backward(rank.gradient());
    optimizer.step();
    model.large.set_requires_grad(true);
    optimizer.zero_grad();
    model.backward(rank.gradient());
    optimizer.step();
    expect_values(model.small, 8 - 2 * rank.mean_gradient());
    expect_values(model.large, 8 - 0.5 * rank.mean_gradient());
  });
}

TEST_P(UserParameters, FrozenForAWhileAreLeftAloneMeanwhile) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.train();
    program.model->large.set_requires_grad(false);
    program.train();
    expect_values(program.model->large, 8 - rank.mean_gradient(), "frozen");
    program.model->large.set_requires_grad(true);
    program.train();
    expect_values(program.model->small, 8 - 3 * rank.mean_gradient());
    expect_values(program.model->large, 8 - 2 * rank.mean_gradient(), "unfrozen");
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserParameters, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);
INSTANTIATE_TEST_SUITE_P(Everywhere, UserParametersOverMessages,
                         ::testing::ValuesIn(testing::settings_where([](const auto& setting) {
                           return !setting.host_window;
                         })),
                         testing::name_of_setting);
INSTANTIATE_TEST_SUITE_P(Everywhere, UserParametersOfSeveralRanks,
                         ::testing::ValuesIn(testing::settings_of_several_ranks()),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun

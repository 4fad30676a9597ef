// Loops with more than one backward pass before a step: accumulation in all its idioms, batches thrown away, several losses,
// two optimizers over one model. The divisor is the world size times (1 + the passes under no_sync() whose gradients
// stand in p.grad at step()); with guarded passes only, the world size times their number.
#include <torch/optim/sgd.h>

#include "user_program.h"

namespace fusedbun {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using testing::expect_refused;
using ::testing::HasSubstr;
using testing::Model;
using testing::names_a_parameter;
using testing::plain_sgd;
using testing::Rank;

class UserPasses : public testing::UserProgram {};

/// A model and its optimizer on one rank.
struct Program {
  explicit Program(Rank& rank) : Program(rank, rank.options()) {}
  Program(Rank& rank, ShardedOptions options)
      : model(rank.type(), 0),
        optimizer(rank.channels(), model.named_parameters(), plain_sgd(), std::move(options)) {}

  void guarded_pass(double gradient) {
    const auto guard = optimizer.no_sync();
    model.backward(gradient);
  }

  Model model;
  ShardedFusedbun optimizer;
};

// ---- accumulation ------------------------------------------------------------------------------

TEST_P(UserPasses, InOneGuardCountEach) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int step = 1; step <= 2; ++step) {
      {
        const auto guard = program.optimizer.no_sync();
        for (int pass = 0; pass < 3; ++pass) program.model.backward(rank.gradient());
      }
      program.model.backward(rank.gradient());
      program.optimizer.step();
      program.model.expect_values(-step * rank.mean_gradient());
    }
  });
}

TEST_P(UserPasses, InAGuardEachCountEach) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int pass = 0; pass < 3; ++pass) program.guarded_pass(rank.gradient());
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient());
  });
}

TEST_P(UserPasses, InGuardsAloneCountEach) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int step = 1; step <= 2; ++step) {
      {
        const auto guard = program.optimizer.no_sync();
        for (int pass = 0; pass < 3; ++pass) program.model.backward(rank.gradient());
      }
      program.optimizer.step();
      program.model.expect_values(-step * rank.mean_gradient());
    }
  });
}

TEST_P(UserPasses, GuardsWithoutABackwardPassDoNotCount) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    { const auto guard = program.optimizer.no_sync(); }
    {
      const auto guard = program.optimizer.no_sync();
      (program.model.small * 2).sum();  // a forward pass alone: validation
    }
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient());
  });
}

TEST_P(UserPasses, NestedGuardsCountTheirPassOnce) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    {
      const auto outer = program.optimizer.no_sync();
      program.guarded_pass(rank.gradient());
    }
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient());
  });
}

// Passes for different parts of a model are passes all the same, as the sum is one of losses.
TEST_P(UserPasses, OverDifferentParametersCountEach) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    {
      const auto guard = program.optimizer.no_sync();
      (program.model.small * 3).sum().backward();
      (program.model.large * 6).sum().backward();
    }
    program.model.backward(0);
    program.optimizer.step();
    testing::expect_values(program.model.small, -1);
    testing::expect_values(program.model.large, -2);
  });
}

TEST_P(UserPasses, TheCountStartsAnewAfterEachStep) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.guarded_pass(rank.gradient());
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-2 * rank.mean_gradient());
  });
}

class UnevenPasses : public testing::UserProgram {};

TEST_P(UnevenPasses, AreRefusedWithBothNumbers) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int pass = 0; pass < (rank.is_last() ? 16 : 12); ++pass) program.guarded_pass(1);
    program.model.backward(1);
    expect_refused([&] { program.optimizer.step(); },
                   AllOf(HasSubstr("17"), HasSubstr("13"), HasSubstr("gradient_divisor")));
    program.model.expect_values(0, "after a refused step");

    program.optimizer.zero_grad();
    program.model.backward(rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient(), "with equal numbers again");
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UnevenPasses,
                         ::testing::ValuesIn(testing::settings_of_several_ranks()),
                         testing::name_of_setting);

// Who names the divisor has said what the sum means, whatever the passes were.
TEST_P(UserPasses, OfDifferentNumbersAreSummedUpUnderADivisorOfTheUser) {
  on_ranks([](Rank& rank) {
    ShardedOptions options = rank.options();
    options.gradient_divisor = 2;
    Program program(rank, options);
    for (int pass = 0; pass < rank.rank(); ++pass) program.guarded_pass(1);
    program.model.backward(1);
    program.optimizer.step();
    // rank + 1 passes on each rank.
    program.model.expect_values(-rank.world_size() * (rank.world_size() + 1) / 4.0);
  });
}

// ---- passes thrown away ------------------------------------------------------------------------

TEST_P(UserPasses, ZeroedUnderAGuardDoNotCount) {
  for (const bool set_to_none : {true, false}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      for (int step = 1; step <= 2; ++step) {
        program.guarded_pass(64);
        program.guarded_pass(64);
        program.optimizer.zero_grad(set_to_none);
        program.guarded_pass(rank.gradient());
        program.model.backward(rank.gradient());
        program.optimizer.step();
        program.model.expect_values(-step * rank.mean_gradient(),
                                    set_to_none ? "set to none" : "zeroed in place");
      }
    });
  }
}

// A loop that guards another network's pass and then drops what it left here.
TEST_P(UserPasses, AllZeroedBeforeAnOrdinaryPassDoNotCount) {
  for (const bool set_to_none : {true, false}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      program.guarded_pass(64);
      program.optimizer.zero_grad(set_to_none);
      program.model.backward(rank.gradient());
      program.optimizer.step();
      program.model.expect_values(-rank.mean_gradient(),
                                  set_to_none ? "set to none" : "zeroed in place");
    });
  }
}

TEST_P(UserPasses, TheLastRoundCountsAfterOthersWereThrownAway) {
  for (const bool set_to_none : {true, false}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      for (int step = 1; step <= 3; ++step) {
        for (int dropped = 0; dropped < step; ++dropped) {
          program.model.backward(64 + dropped);
          program.optimizer.zero_grad(set_to_none);
        }
        program.model.backward(rank.gradient());
        program.optimizer.step();
        program.model.expect_values(-step * rank.mean_gradient(),
                                    set_to_none ? "set to none" : "zeroed in place");
      }
    });
  }
}

// A rank drops a batch that it finds broken; the others do not know.
TEST_P(UserPasses, TheLastRoundCountsWhereOneRankThrewABatchAway) {
  for (const bool set_to_none : {true, false}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      for (int step = 1; step <= 3; ++step) {
        if (rank.rank() == step % rank.world_size()) {
          program.model.backward(64);
          program.optimizer.zero_grad(set_to_none);
        }
        program.model.backward(rank.gradient());
        program.optimizer.step();
        program.model.expect_values(-step * rank.mean_gradient(),
                                    set_to_none ? "set to none" : "zeroed in place");
      }
    });
  }
}

TEST_P(UserPasses, APartOfTheModelMayBeThrownAway) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.model.backward(4);
    program.model.small.mutable_grad().reset();
    (program.model.small * rank.gradient()).sum().backward();
    program.optimizer.step();
    testing::expect_values(program.model.small, -rank.mean_gradient());
    testing::expect_values(program.model.large, -4);
  });
}

// ---- several losses ----------------------------------------------------------------------------

TEST_P(UserPasses, OfTwoLossesAddUp) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int step = 1; step <= 2; ++step) {
      program.model.backward(rank.gradient());
      program.model.backward(2);
      program.optimizer.step();
      program.model.expect_values(-step * (rank.mean_gradient() + 2));
    }
  });
}

TEST_P(UserPasses, OfASecondLossOnOneRankAddUpThere) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.model.backward(rank.gradient());
    if (rank.is_last()) program.model.backward(3);
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient() - 3.0 / rank.world_size());
  });
}

TEST_P(UserPasses, OfASecondLossOverSomeParametersAddUpThere) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    program.model.backward(rank.gradient());
    (program.model.small * 2).sum().backward();
    program.optimizer.step();
    testing::expect_values(program.model.small, -rank.mean_gradient() - 2);
    testing::expect_values(program.model.large, -rank.mean_gradient());
  });
}

TEST_P(UserPasses, OfOneGraphTwiceAddUp) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    const at::Tensor loss = (program.model.small * rank.gradient()).sum() +
                            (program.model.large * rank.gradient()).sum();
    loss.backward({}, /*retain_graph=*/true);
    loss.backward();
    program.optimizer.step();
    program.model.expect_values(-2 * rank.mean_gradient());
  });
}

/// With p.grad gone in the hook, or stepped in the backward pass, a second gradient has nothing to be added to.
void refuse_a_second_gradient(Rank& rank, const ShardedOptions& options, bool whole_model) {
  Model model(rank.type(), 0);
  ShardedFusedbun optimizer(rank.channels(), model.named_parameters(),
                            plain_sgd().nonfinite(Nonfinite::propagate), options);
  const auto pass = [&] {
    // With one parameter only, its bucket is still waiting for the other when the second gradient comes.
    if (whole_model) return model.backward(1);
    (model.large * 1).sum().backward();
  };
  expect_refused(
      [&] {
        pass();
        pass();
        optimizer.step();
      },
      AllOf(names_a_parameter(), HasSubstr("no_sync()")), whole_model ? "whole" : "in part");
}

TEST_P(UserPasses, ASecondGradientIsRefusedWhereTheHookReleasesTheFirst) {
  for (const bool whole_model : {true, false}) {
    on_ranks([&](Rank& rank) {
      ShardedOptions options = rank.options();
      options.release = GradientRelease::in_hook;
      options.bucket_bytes = 1 << 20;  // both parameters in one bucket
      refuse_a_second_gradient(rank, options, whole_model);
    });
  }
}

TEST_P(UserPasses, ASecondGradientIsRefusedWhereBackwardSteps) {
  on_ranks([](Rank& rank) {
    ShardedOptions options = rank.options();
    options.step_in_backward = true;
    refuse_a_second_gradient(rank, options, true);
  });
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserPasses, ::testing::ValuesIn(testing::all_settings()),
                         testing::name_of_setting);

// ---- two optimizers ----------------------------------------------------------------------------

class UserGan : public testing::UserProgram {};

/// A generator and a discriminator of a few weights, and the two losses of a batch.
struct Gan {
  at::Tensor generator = at::linspace(-1, 1, 24).view({4, 6}).requires_grad_();
  at::Tensor discriminator = at::linspace(0.5, -0.5, 12).view({6, 2}).requires_grad_();

  at::Tensor score(const at::Tensor& samples) const {
    return at::tanh(at::matmul(samples, discriminator)).sum(1);
  }
  at::Tensor fake(const at::Tensor& noise) const { return at::tanh(at::matmul(noise, generator)); }
  at::Tensor generator_loss(const at::Tensor& noise) const {
    return at::softplus(-score(fake(noise))).mean();
  }
  at::Tensor discriminator_loss(const at::Tensor& noise) const {
    const at::Tensor real = at::sin(noise.repeat({1, 2}).slice(1, 0, 6) * 3);
    return (at::softplus(-score(real)) + at::softplus(score(fake(noise).detach()))).mean();
  }
};

/// The loop of every GAN tutorial. The generator's pass reaches the discriminator's parameters too; zero_grad() drops that.
template <class Optimizer>
void train_gan(const Gan& gan, Optimizer& generator, Optimizer& discriminator, int part, int parts,
               bool generator_first) {
  for (int step = 0; step < 5; ++step) {
    const at::Tensor noise =
        at::randn({12, 4}, at::detail::createCPUGenerator(step + 1)).chunk(parts)[part];
    const auto train_generator = [&] {
      generator.zero_grad();
      gan.generator_loss(noise).backward();
      generator.step();
    };
    const auto train_discriminator = [&] {
      discriminator.zero_grad();
      gan.discriminator_loss(noise).backward();
      discriminator.step();
    };
    if (generator_first) train_generator();
    train_discriminator();
    if (!generator_first) train_generator();
  }
}

TEST_P(UserGan, TrainsAsOnOneProcess) {
  for (const bool generator_first : {true, false}) {
    Gan alone;
    torch::optim::SGD alone_generator({alone.generator}, 0.5);
    torch::optim::SGD alone_discriminator({alone.discriminator}, 0.5);
    train_gan(alone, alone_generator, alone_discriminator, 0, 1, generator_first);
    on_ranks([&](Rank& rank) {
      Gan gan;
      const auto optimizer_of = [&](const char* name, const at::Tensor& parameter) {
        torch::OrderedDict<std::string, torch::Tensor> named;
        named.insert(name, parameter);
        return std::make_unique<ShardedFusedbun>(rank.channels(), named, plain_sgd(0.5),
                                                 rank.options());
      };
      const auto generator = optimizer_of("generator", gan.generator);
      const auto discriminator = optimizer_of("discriminator", gan.discriminator);
      train_gan(gan, *generator, *discriminator, rank.rank(), rank.world_size(), generator_first);
      // The mean of the ranks' means rounds otherwise than the mean of the batch.
      EXPECT_TRUE(at::allclose(gan.generator, alone.generator, 1e-4, 1e-5));
      EXPECT_TRUE(at::allclose(gan.discriminator, alone.discriminator, 1e-4, 1e-5));
      generator->finish();
      discriminator->finish();
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Everywhere, UserGan,
                         ::testing::ValuesIn(testing::settings_where([](const auto& setting) {
                           return setting.type == at::kFloat;
                         })),
                         testing::name_of_setting);

}  // namespace
}  // namespace fusedbun

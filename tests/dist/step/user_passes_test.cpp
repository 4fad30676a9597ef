// Loops with more than one backward pass before a step: accumulation in all its idioms, batches thrown away, several losses,
// two optimizers over one model. The divisor is the world size times (1 + the passes under no_sync() whose gradients
// stand in p.grad at step()); with guarded passes only, the world size times their number.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
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

// Passes for different parts of a model are passes too, as the sum is one of losses.
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

// ---- passes inside of a pass -------------------------------------------------------------------

/// As torch.utils.checkpoint does with use_reentrant=True: what `forward` computes is computed once more in the backward pass,
/// and a backward pass of its own runs through it there.
class Reentrant : public torch::autograd::Function<Reentrant> {
 public:
  using Forward = std::function<at::Tensor(const at::Tensor&)>;

  static at::Tensor of(const at::Tensor& input, Forward forward) {
    return apply(input, c10::make_intrusive<Holder>(std::move(forward)));
  }

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const c10::intrusive_ptr<torch::CustomClassHolder>& held) {
    context->save_for_backward({input});
    context->saved_data["forward"] = c10::IValue::make_capsule(held);
    return static_cast<Holder&>(*held).forward(input);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const at::Tensor input = context->get_saved_variables()[0].detach().requires_grad_();
    const auto held = context->saved_data["forward"].toCapsule();
    const at::AutoGradMode grad(true);
    const at::Tensor output = static_cast<Holder&>(*held).forward(input);
    torch::autograd::backward({output}, {gradients[0]});
    return {input.grad(), at::Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(Forward forward_) : forward(std::move(forward_)) {}
    Forward forward;
  };
};

/// A pass in which every element's gradient is `gradient`, and which reaches each parameter in a nested pass; `depth` of them, one
/// inside the other. No parameter is reached by the pass that the program has called.
void nested_pass(const Model& model, double gradient, int depth = 1) {
  const auto through = [depth](const at::Tensor& parameter, double factor) {
    Reentrant::Forward forward = [parameter, factor](const at::Tensor& x) {
      return x * (parameter * factor).sum();
    };
    for (int level = 1; level < depth; ++level) {
      forward = [inner = forward](const at::Tensor& x) { return Reentrant::of(x, inner); };
    }
    return Reentrant::of(at::ones({}).requires_grad_(), forward);
  };
  (through(model.small, gradient) + through(model.large, gradient)).backward();
}

TEST_P(UserPasses, NestedInOneAreAPartOfIt) {
  for (const int depth : {1, 2, 3}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      for (int step = 1; step <= 2; ++step) {
        {
          const auto guard = program.optimizer.no_sync();
          for (int pass = 0; pass < 3; ++pass) nested_pass(program.model, rank.gradient(), depth);
        }
        nested_pass(program.model, rank.gradient(), depth);
        program.optimizer.step();
        program.model.expect_values(-step * rank.mean_gradient(), std::to_string(depth));
      }
    });
  }
}

TEST_P(UserPasses, NestedOnesUnderGuardsAloneCountAsTheirPassDoes) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    for (int pass = 0; pass < 3; ++pass) {
      const auto guard = program.optimizer.no_sync();
      nested_pass(program.model, rank.gradient());
    }
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient());
  });
}

// A block is recomputed, and the rest of the model is reached by the pass itself, after it or before.
TEST_P(UserPasses, PartlyNestedCountOnce) {
  for (const bool small_is_nested : {true, false}) {
    on_ranks([&](Rank& rank) {
      Program program(rank);
      const at::Tensor& inside = small_is_nested ? program.model.small : program.model.large;
      const at::Tensor& outside = small_is_nested ? program.model.large : program.model.small;
      const auto pass = [&] {
        const Reentrant::Forward block = [&](const at::Tensor& x) { return x + inside.sum(); };
        const at::Tensor before = (outside * rank.gradient()).sum();
        (Reentrant::of(before / rank.gradient(), block) * rank.gradient()).backward();
      };
      {
        const auto guard = program.optimizer.no_sync();
        pass();
        pass();
      }
      pass();
      program.optimizer.step();
      program.model.expect_values(-rank.mean_gradient());
    });
  }
}

TEST_P(UserPasses, NestedOnesThatWereZeroedDoNotCount) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    {
      const auto guard = program.optimizer.no_sync();
      nested_pass(program.model, 64);
      program.optimizer.zero_grad();
      nested_pass(program.model, rank.gradient());
    }
    nested_pass(program.model, rank.gradient());
    program.optimizer.step();
    program.model.expect_values(-rank.mean_gradient());
  });
}

// A parameter of two blocks gets its gradient in two parts.
TEST_P(UserPasses, AParameterOfTwoRecomputedBlocksAddsUp) {
  on_ranks([](Rank& rank) {
    Program program(rank);
    const auto pass = [&] {
      nested_pass(program.model, rank.gradient());
      const Reentrant::Forward block = [&](const at::Tensor& x) {
        return x * (program.model.small * rank.gradient()).sum();
      };
      const at::Tensor one = at::ones({}).requires_grad_();
      (Reentrant::of(one, block) + Reentrant::of(one, block)).backward();
    };
    {
      const auto guard = program.optimizer.no_sync();
      pass();
    }
    program.optimizer.step();  // two passes, and three gradients of `small` in them
    testing::expect_values(program.model.small, -rank.mean_gradient() * 3 / 2);
    testing::expect_values(program.model.large, -rank.mean_gradient() / 2);
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

// As DDP refuses it: the first gradient has left when the second one comes.
TEST_P(UserPasses, AParameterOfTwoRecomputedBlocksIsRefusedWhereTheHookReleases) {
  on_ranks([](Rank& rank) {
    ShardedOptions options = rank.options();
    options.release = GradientRelease::in_hook;
    Program program(rank, options);
    const Reentrant::Forward block = [&](const at::Tensor& x) {
      return x * program.model.small.sum();
    };
    const at::Tensor one = at::ones({}).requires_grad_();
    expect_refused(
        [&] {
          (Reentrant::of(one, block) + Reentrant::of(one, block)).backward();
          program.optimizer.step();
        },
        AllOf(HasSubstr("'small'"), HasSubstr("recomputed"), HasSubstr("in_hook")));
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

// What a training loop meets: hooks, overlap, groups, frozen, unused and tied parameters, accumulation, clipping, non-finite
// gradients, closures, late groups, changes while running, and the mistakes a loop can make.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/optim/schedulers/step_lr.h>
#include <torch/serialize.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_schedule.h"
#include "local_ranks.h"
#include "random_model.h"

namespace fusedbun {
namespace {

using ::testing::HasSubstr;
using testing::run_ranks;

constexpr double kLr = 0.01;

/// Two matrices, a bias, and a loss whose gradient differs between ranks.
struct TinyModel {
  torch::OrderedDict<std::string, torch::Tensor> parameters;

  TinyModel() {
    at::Generator generator = at::detail::createCPUGenerator(3);
    const auto add = [&](const char* name, at::IntArrayRef shape) {
      parameters.insert(name, at::randn(shape, generator).mul_(0.3).requires_grad_());
    };
    add("in.weight", {16, 8});
    add("in.bias", {16});
    add("out.weight", {4, 16});
  }
  at::Tensor loss(const at::Tensor& input) {
    const at::Tensor hidden =
        at::tanh(at::linear(input, parameters["in.weight"], parameters["in.bias"]));
    return at::linear(hidden, parameters["out.weight"]).square().mean();
  }
  std::vector<at::Tensor> tensors() const {
    std::vector<at::Tensor> list;
    for (const auto& item : parameters) list.push_back(item.value());
    return list;
  }
};

at::Tensor batch(int64_t seed, int64_t size) {
  return at::randn({size, 8}, at::detail::createCPUGenerator(seed));
}

Channels both(comm::Communicator& communicator) {
  return {&communicator, &communicator};
}

/// The parameters after `steps` steps of one process on the whole of each batch of 12.
std::vector<at::Tensor> alone_on_batches(int steps, const FusedbunOptions& options) {
  TinyModel model;
  Fusedbun optimizer(model.tensors(), options);
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    model.loss(batch(step, 12)).backward();
    optimizer.step();
  }
  return testing::values_of(model.parameters);
}

void expect_close(const torch::OrderedDict<std::string, torch::Tensor>& model,
                  const std::vector<at::Tensor>& expected, double tolerance) {
  for (size_t p = 0; p < expected.size(); ++p) {
    const double error = (model[p].value().detach() - expected[p]).abs().max().item<double>();
    EXPECT_LE(error, tolerance) << model[p].key();
  }
}

// Gradients of a third of the batch each, averaged, are those of the batch up to float32 rounding; the elementwise preset
// centralises, which keeps the sign-like first steps of near-zero gradients out of the comparison.
constexpr double kAveragingError = 2e-4;

TEST(ShardedFusedbun, TrainsThroughBackwardAsOneProcessDoes) {
  const auto options = FusedbunOptions::recommended(kLr).eps(1e-4);
  const auto expected = alone_on_batches(10, options);
  for (const int world_size : {1, 2, 3, 4}) {
    run_ranks(world_size, [&](comm::Communicator& communicator) {
      TinyModel model;
      ShardedFusedbun optimizer(both(communicator), model.parameters, options,
                                {.min_rows_per_rank = 1, .bucket_bytes = 256});
      for (int step = 0; step < 10; ++step) {
        optimizer.zero_grad();
        model.loss(batch(step, 12).chunk(world_size)[communicator.rank()]).backward();
        optimizer.step();
      }
      optimizer.finish();
      expect_close(model.parameters, expected, kAveragingError);
    });
  }
}

TEST(ShardedFusedbun, StartsFromTheParametersOfRankZero) {
  run_ranks(3, [](comm::Communicator& communicator) {
    TinyModel model;
    for (auto& tensor : model.tensors()) tensor.detach().add_(communicator.rank());
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    EXPECT_TRUE(at::equal(model.parameters["in.bias"], TinyModel().parameters["in.bias"]));
  });
}

TEST(ShardedFusedbun, AccumulatesUnderNoSync) {
  const auto options = FusedbunOptions::recommended(kLr).eps(1e-4);
  const auto expected = alone_on_batches(5, options);
  run_ranks(2, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters, options,
                              {.min_rows_per_rank = 1});
    for (int step = 0; step < 5; ++step) {
      const auto micro = batch(step, 12).chunk(2)[communicator.rank()].chunk(3);
      for (int i = 0; i < 2; ++i) {
        const auto guard = optimizer.no_sync();
        model.loss(micro[i]).backward();
      }
      model.loss(micro[2]).backward();
      optimizer.step();
    }
    optimizer.finish();
    expect_close(model.parameters, expected, kAveragingError);
  });
}

TEST(ShardedFusedbun, RefusesAGradientThatWasWrittenAfterItWasTaken) {
  run_ranks(1, [](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    model.loss(batch(0, 4)).backward();
    model.parameters["in.bias"].mutable_grad().mul_(0.5);
    try {
      optimizer.step();
      ADD_FAILURE() << "a change that the other ranks never saw went unnoticed";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("'in.bias'"));
      EXPECT_THAT(error.what(), HasSubstr("max_grad_norm"));
    }
  });
}

// Long segments are read where autograd left them: their memory must live as long as the exchange, and no longer than the step.
TEST(ShardedFusedbun, KeepsReleasedGradientsUntilTheirStep) {
  run_ranks(2, [](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("w", at::zeros({64, 8}).requires_grad_());
    ShardedFusedbun optimizer(both(communicator), model,
                              FusedbunOptions(1.0).momentum_beta(0).Lambda(0).mask(Mask::off),
                              {.min_rows_per_rank = 1,
                               .in_place_bytes = 1,
                               .host_window = false,
                               .release = GradientRelease::in_hook});
    (model["w"] * (communicator.rank() + 1.0)).sum().backward();
    EXPECT_FALSE(model["w"].grad().defined());
    optimizer.step();
    optimizer.finish();
    EXPECT_TRUE(at::equal(model["w"].detach(), at::full({64, 8}, -1.5f)));

    const at::Tensor gradient = at::full({64, 8}, 2.0f);
    model["w"].mutable_grad() = gradient;
    optimizer.step();
    EXPECT_EQ(gradient.storage().use_count(), 1u) << "somebody keeps it after its step";
    EXPECT_TRUE(at::equal(model["w"].detach(), at::full({64, 8}, -3.5f)));
  });
}

TEST(ShardedFusedbun, CallsTheClosureWithGradientsEnabledAndReturnsItsLoss) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    const at::Tensor before = model.parameters["in.weight"].detach().clone();
    const at::NoGradGuard no_grad;
    const at::Tensor loss = optimizer.step([&] {
      at::Tensor value = model.loss(batch(0, 4));
      value.backward();
      return value;
    });
    EXPECT_GT(loss.item<float>(), 0);
    EXPECT_FALSE(at::equal(before, model.parameters["in.weight"]));
  });
}

TEST(ShardedFusedbun, LeavesFrozenAndUnusedParametersAlone) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    model.parameters["in.weight"].set_requires_grad(false);
    model.parameters.insert("unused", at::ones({8, 8}).requires_grad_());
    const at::Tensor frozen = model.parameters["in.weight"].clone();
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr).Lambda(0.5),
                              {.min_rows_per_rank = 1});
    for (int step = 0; step < 3; ++step) {
      model.loss(batch(step, 4)).backward();
      optimizer.step();
    }
    EXPECT_TRUE(at::equal(model.parameters["in.weight"], frozen));
    EXPECT_TRUE(at::equal(model.parameters["unused"].detach(), at::ones({8, 8})));
    for (const auto& owned : optimizer.owned_rows()) {
      EXPECT_NE(owned.name, "in.weight");
      EXPECT_EQ(owned.t, owned.name == "unused" ? 0 : 3) << owned.name;
    }
  });
}

// A parameter with a gradient on one rank alone is used on all; its average counts the others as zero.
TEST(ShardedFusedbun, UsesAGradientThatOneRankAloneHas) {
  run_ranks(2, [](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("a", at::ones({8, 2}).requires_grad_());
    ShardedFusedbun optimizer(both(communicator), model,
                              FusedbunOptions(0.5).momentum_beta(0).Lambda(0).mask(Mask::off));
    if (communicator.rank() == 1) model["a"].mutable_grad() = at::full({8, 2}, 4.0f);
    optimizer.step();
    EXPECT_TRUE(at::equal(model["a"].detach(), at::zeros({8, 2})));  // 1 - 0.5 · 4 / 2
  });
}

TEST(ShardedFusedbun, StepsATiedParameterOnce) {
  run_ranks(2, [](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    const at::Tensor tied = at::ones({8, 8}).requires_grad_();
    model.insert("wte.weight", tied);
    model.insert("lm_head.weight", tied);
    ShardedFusedbun optimizer(both(communicator), model,
                              FusedbunOptions(0.5).momentum_beta(0).Lambda(0).mask(Mask::off));
    (tied.sum() + tied.sum()).backward();
    optimizer.step();
    EXPECT_TRUE(at::equal(tied.detach(), at::zeros({8, 8})));
    EXPECT_EQ(optimizer.shard_plan().parameters.size(), 1u);
  });
}

TEST(ShardedFusedbun, RefusesParametersThatShareMemory) {
  run_ranks(1, [](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    const at::Tensor base = at::ones({8, 8});
    model.insert("first", base.view({64}).requires_grad_());
    model.insert("second", base.view({8, 8}).requires_grad_());
    try {
      ShardedFusedbun optimizer(both(communicator), model, FusedbunOptions::recommended(kLr));
      ADD_FAILURE();
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("'first' and 'second' share memory"));
    }
  });
}

TEST(ShardedFusedbun, StepsParametersThatAreNotContiguous) {
  const auto options = FusedbunOptions::recommended(kLr);
  const at::Tensor start = at::arange(96, at::kFloat).view({8, 12}).t();
  const at::Tensor gradient = at::randn({12, 8}, at::detail::createCPUGenerator(5));
  const auto expected =
      testing::train_alone({start.contiguous()}, {{gradient}, {gradient}}, options);
  run_ranks(2, [&](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("transposed", start.clone(at::MemoryFormat::Preserve).requires_grad_());
    ASSERT_FALSE(model["transposed"].is_contiguous());
    ShardedFusedbun optimizer(both(communicator), model, options, {.gradient_divisor = 2.0});
    for (int step = 0; step < 2; ++step) {
      model["transposed"].mutable_grad() = gradient.clone();
      optimizer.step();
    }
    // The column sum over two ranks may round differently from the one over one.
    EXPECT_TRUE(at::allclose(model["transposed"].detach(), expected[0], 1e-6, 1e-6));
  });
}

TEST(ShardedFusedbun, KeepsFloat32MastersOfBfloat16Parameters) {
  const auto options = FusedbunOptions::sm3(1e-4);
  const at::Tensor start = at::randn({12, 8}, at::detail::createCPUGenerator(6)).to(at::kBFloat16);
  const at::Tensor gradient =
      at::randn({12, 8}, at::detail::createCPUGenerator(7)).to(at::kBFloat16);
  testing::Gradients gradients(20, {gradient.to(at::kFloat)});
  const auto expected = testing::train_alone({start.to(at::kFloat)}, gradients, options);
  run_ranks(3, [&](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("half", start.clone().requires_grad_());
    ShardedFusedbun optimizer(both(communicator), model, options, {.gradient_divisor = 3.0});
    for (int step = 0; step < 20; ++step) {
      model["half"].mutable_grad() = gradient.clone();
      optimizer.step();
    }
    EXPECT_EQ(optimizer.state_bytes(), optimizer.planned_state_bytes());
    EXPECT_TRUE(at::equal(model["half"].detach(), expected[0].to(at::kBFloat16)));
  });
}

TEST(ShardedFusedbun, SkipsANonFiniteStepOnAllRanks) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 2e19f}) {
    run_ranks(3, [&](comm::Communicator& communicator) {
      TinyModel model;
      ShardedFusedbun optimizer(both(communicator), model.parameters,
                                FusedbunOptions::recommended(kLr), {.min_rows_per_rank = 1});
      model.loss(batch(0, 4)).backward();
      optimizer.step();
      const auto before = testing::values_of(model.parameters);
      model.loss(batch(1, 4)).backward();
      optimizer.step();
      const auto after = testing::values_of(model.parameters);
      for (auto& tensor : model.tensors()) {
        tensor.mutable_grad() = at::zeros_like(tensor) + (communicator.rank() == 1 ? bad : 1.0f);
      }
      optimizer.step();
      EXPECT_EQ(optimizer.skipped_steps(), 1);
      EXPECT_EQ(optimizer.job_step(), 3);
      for (size_t p = 0; p < after.size(); ++p) {
        EXPECT_FALSE(at::equal(before[p], after[p]));
        EXPECT_TRUE(at::equal(model.parameters[p].value().detach(), after[p]));
      }
      for (const auto& owned : optimizer.owned_rows()) EXPECT_EQ(owned.t, 2);
    });
  }
}

TEST(ShardedFusedbun, ClipsTheGlobalNormOfTheAverage) {
  for (const int world_size : {1, 2, 3}) {
    run_ranks(world_size, [&](comm::Communicator& communicator) {
      torch::OrderedDict<std::string, torch::Tensor> model;
      model.insert("a", at::zeros({9, 4}).requires_grad_());
      model.insert("b", at::zeros({13}).requires_grad_());
      ShardedFusedbun optimizer(both(communicator), model,
                                FusedbunOptions(1.0).momentum_beta(0).Lambda(0).mask(Mask::off),
                                {.min_rows_per_rank = 1, .max_grad_norm = 0.5});
      model["a"].mutable_grad() = at::full({9, 4}, 3.0f);
      model["b"].mutable_grad() = at::full({13}, -2.0f);
      optimizer.step();
      const double norm = std::sqrt(36 * 9.0 + 13 * 4.0);
      EXPECT_NEAR(optimizer.report().gradient_norm, norm, 1e-9);
      EXPECT_NEAR(model["a"][0][0].item<double>(), -3.0 * 0.5 / norm, 1e-7);
      EXPECT_NEAR(model["b"][12].item<double>(), 2.0 * 0.5 / norm, 1e-7);
    });
  }
}

TEST(ShardedFusedbun, TakesGroupsALateGroupAndASchedule) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<at::Tensor>{model.parameters["in.weight"]});
    groups.emplace_back(
        std::vector<at::Tensor>{model.parameters["in.bias"]},
        std::make_unique<FusedbunOptions>(FusedbunOptions::recommended(0.5).Lambda(0)));
    ShardedFusedbun optimizer(both(communicator), groups, FusedbunOptions::recommended(kLr),
                              {.min_rows_per_rank = 1});
    torch::optim::StepLR schedule(optimizer, 1, 0.1);
    model.loss(batch(0, 4)).backward();
    optimizer.step();
    EXPECT_EQ(optimizer.report().group_options[1].lr, 0.5);
    EXPECT_EQ(optimizer.report().group_options[1].Lambda, 0);
    schedule.step();  // LibTorch's StepLR changes nothing in its first call
    schedule.step();

    const at::Tensor before = model.parameters["out.weight"].detach().clone();
    optimizer.add_param_group({std::vector<at::Tensor>{model.parameters["out.weight"]}});
    model.parameters["out.weight"].mutable_grad().reset();
    model.loss(batch(1, 4)).backward();
    optimizer.step();
    EXPECT_NEAR(optimizer.report().group_options[0].lr, kLr * 0.1, 1e-12);
    EXPECT_NEAR(optimizer.report().group_options[1].lr, 0.05, 1e-12);
    EXPECT_FALSE(at::equal(before, model.parameters["out.weight"]));
    EXPECT_EQ(optimizer.state_bytes(), optimizer.planned_state_bytes());
    for (const auto& owned : optimizer.owned_rows()) {
      EXPECT_EQ(owned.t, owned.name.starts_with("group2") ? 1 : 2) << owned.name;
    }
  });
}

TEST(ShardedFusedbun, ReadsAnExternalHessianDiagonal) {
  const auto options = FusedbunOptions::recommended(kLr)
                           .accumulator(Accumulator::full)
                           .prepare_hessian(true)
                           .hessian_source(HessianSource::external);
  const at::Tensor diagonal = at::rand({12, 8}, at::detail::createCPUGenerator(1));
  const at::Tensor start = at::ones({12, 8}), gradient = at::rand({12, 8});
  at::Tensor alone = start.clone().requires_grad_();
  Fusedbun reference({alone}, options);
  alone.mutable_grad() = gradient.clone();
  reference.set_hessian_diagonal(alone, diagonal);
  reference.step();
  run_ranks(3, [&](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("a", start.clone().requires_grad_());
    ShardedFusedbun optimizer(both(communicator), model, options, {.gradient_divisor = 3.0});
    model["a"].mutable_grad() = gradient.clone();
    optimizer.set_hessian_diagonal(model["a"], diagonal);
    optimizer.step();
    // Adding three equal float32 numbers and dividing by three is exact to half a unit in the last place.
    EXPECT_TRUE(at::allclose(model["a"].detach(), alone.detach(), 1e-6, 1e-7));
  });
}

TEST(ShardedFusedbun, ContinuesFromItsSavedShardBitForBit) {
  run_ranks(2, [](comm::Communicator& communicator) {
    const auto options = FusedbunOptions::compact(kLr);
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters, options,
                              {.min_rows_per_rank = 1});
    const auto step = [](TinyModel& m, ShardedFusedbun& o, int index) {
      m.loss(batch(index, 4)).backward();
      o.step();
    };
    for (int i = 0; i < 3; ++i) step(model, optimizer, i);
    std::stringstream saved;
    torch::save(optimizer, saved);
    const auto parameters = testing::values_of(model.parameters);
    for (int i = 3; i < 6; ++i) step(model, optimizer, i);

    TinyModel again;
    for (size_t p = 0; p < parameters.size(); ++p) {
      again.parameters[p].value().detach().copy_(parameters[p]);
    }
    ShardedFusedbun restored(both(communicator), again.parameters, options,
                             {.min_rows_per_rank = 1});
    torch::load(restored, saved);
    EXPECT_EQ(restored.job_step(), 3);
    for (int i = 3; i < 6; ++i) step(again, restored, i);
    for (size_t p = 0; p < parameters.size(); ++p) {
      EXPECT_TRUE(at::equal(model.parameters[p].value(), again.parameters[p].value()))
          << p << ": " << (model.parameters[p].value() - again.parameters[p].value()).abs().max();
    }
  });
}

TEST(ShardedFusedbun, SaysOnceWhatIsSlow) {
  std::vector<std::string> notices;
  run_ranks(2, [&](comm::Communicator& communicator) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("whole", at::ones({5, 40}).requires_grad_());  // 5 rows are too few to be split
    model.insert("transposed", at::ones({40, 16}).t().requires_grad_());
    ShardedOptions options;
    if (communicator.rank() == 0) {
      options.notice = [&](std::string_view sentence) { notices.emplace_back(sentence); };
    }
    ShardedFusedbun optimizer(both(communicator), model,
                              FusedbunOptions::recommended(kLr).momentum_at(MomentumAt::gradient),
                              options);
  });
  const auto said = [&](const char* what) {
    return std::ranges::count_if(notices, [&](const std::string& sentence) {
      return sentence.find(what) != std::string::npos;
    });
  };
  EXPECT_EQ(said("private copies of the parameters"), 1);
  EXPECT_EQ(said("more elements than the average"), 1);
  EXPECT_EQ(said("group 0 takes the reference step"), 1);
  EXPECT_EQ(said("so each step copies it in and out"), 1);
}

// Row and column sums have the names and types of row and column maxima, so only the options tell them apart.
TEST(ShardedFusedbun, RefusesTheStateOfOtherStructuralOptions) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    std::stringstream saved;
    {
      ShardedFusedbun optimizer(both(communicator), model.parameters,
                                FusedbunOptions::recommended(kLr));
      torch::save(optimizer, saved);
    }
    ShardedFusedbun other(both(communicator), model.parameters, FusedbunOptions::sm3(kLr));
    try {
      torch::load(other, saved);
      ADD_FAILURE() << "the state of recommended was read as that of sm3";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr("accumulator"));
    }
    model.loss(batch(0, 4)).backward();
    other.step();
  });
}

TEST(ShardedFusedbun, NamesTheFirstDifferenceBetweenTheRanksModels) {
  std::atomic<int> told = 0;
  EXPECT_THROW(run_ranks(3,
                         [&](comm::Communicator& communicator) {
                           torch::OrderedDict<std::string, torch::Tensor> model;
                           model.insert("same", at::ones({8, 8}).requires_grad_());
                           const int64_t columns = communicator.rank() == 2 ? 5 : 4;
                           model.insert("other", at::ones({8, columns}).requires_grad_());
                           try {
                             ShardedFusedbun optimizer(both(communicator), model,
                                                       FusedbunOptions::recommended(kLr));
                           } catch (const ConfigError& error) {
                             EXPECT_THAT(error.what(), HasSubstr("rank 2 has 'other [8, 5]"));
                             EXPECT_THAT(error.what(), HasSubstr("rank 0 has 'other [8, 4]"));
                             ++told;
                             throw;
                           }
                         }),
               ConfigError);
  EXPECT_EQ(told, 3);
}

/// TinyModel's parameters after a few steps over `world_size` ranks.
std::vector<at::Tensor> trained(int world_size, const FusedbunOptions& options,
                                const ShardedOptions& sharded) {
  std::vector<at::Tensor> result;
  run_ranks(world_size, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters, options, sharded);
    for (int step = 0; step < 4; ++step) {
      model.loss(batch(step, 12).chunk(world_size)[communicator.rank()]).backward();
      optimizer.step();
    }
    optimizer.finish();
    if (communicator.rank() == 0) {
      for (const at::Tensor& value : testing::values_of(model.parameters))
        result.push_back(value.clone());
    }
  });
  return result;
}

void expect_same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b,
                      const std::string& what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t p = 0; p < a.size(); ++p) EXPECT_TRUE(at::equal(a[p], b[p])) << what << ", " << p;
}

TEST(ShardedFusedbun, SteppingInBackwardChangesNoBit) {
  for (const char* preset : {"recommended", "sm3", "compact"}) {
    const auto options = FusedbunOptions::of_preset(preset, kLr).nonfinite(Nonfinite::propagate);
    for (const int world_size : {1, 2, 3}) {
      for (const bool window : {false, true}) {
        ShardedOptions sharded{.min_rows_per_rank = 1, .bucket_bytes = 256, .host_window = window};
        const auto agreed = trained(world_size, options, sharded);
        sharded.step_in_backward = true;
        expect_same_bits(trained(world_size, options, sharded), agreed,
                         preset + std::string(" over ") + std::to_string(world_size));
      }
    }
  }
}

TEST(ShardedFusedbun, SteppingInBackwardNeedsNothingToAgreeOn) {
  const auto refuses = [](const FusedbunOptions& options, double max_grad_norm) {
    run_ranks(1, [&](comm::Communicator& communicator) {
      TinyModel model;
      try {
        ShardedFusedbun optimizer(both(communicator), model.parameters, options,
                                  {.max_grad_norm = max_grad_norm, .step_in_backward = true});
        ADD_FAILURE() << "taken";
      } catch (const ConfigError& error) {
        EXPECT_THAT(error.what(), HasSubstr("nonfinite = propagate"));
        EXPECT_THAT(error.what(), HasSubstr("max_grad_norm = 0"));
      }
    });
  };
  refuses(FusedbunOptions::recommended(kLr), 0);
  refuses(FusedbunOptions::recommended(kLr).nonfinite(Nonfinite::propagate), 1);
  run_ranks(1, [](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr).nonfinite(Nonfinite::propagate),
                              {.step_in_backward = true});
    model.parameters["in.bias"].mutable_grad() = at::ones({16});
    try {
      optimizer.step();
      ADD_FAILURE() << "a parameter without a gradient was taken";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("had none on rank 0"));
    }
  });
}

TEST(ShardedFusedbun, StructureThatChangedIsRefusedUntilItIsAsItWas) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    const auto step = [&] {
      for (auto& item : model.parameters) item.value().mutable_grad() = at::ones_like(item.value());
      optimizer.step();
    };
    step();
    auto& options = static_cast<FusedbunOptions&>(optimizer.param_groups()[0].options());
    const FusedbunOptions made = options;
    const std::function<void()> changes[] = {
        [&] { options.accumulator(Accumulator::sm3); },
        [&] { options.low_precision(LowPrecision::stochastic); },
        [&] { options.momentum_beta(0); }};
    const char* const names[] = {"accumulator (mean, here sm3)",
                                 "low_precision (master, here stochastic)",
                                 "momentum_beta > 0 (true, here false)"};
    for (size_t i = 0; i < std::size(changes); ++i) {
      changes[i]();
      try {
        step();
        ADD_FAILURE() << names[i] << " was taken";
      } catch (const ConfigError& error) {
        EXPECT_THAT(error.what(), HasSubstr(names[i]));
      }
      options = made;
      step();
    }
    EXPECT_EQ(optimizer.job_step(), 4);
  });
}

TEST(ShardedFusedbun, Bfloat16OnTheWireIsAddedUpInFloat32) {
  // Gradients that bfloat16 holds exactly travel without loss, so not a bit may differ; with clipping too.
  for (const double max_grad_norm : {0.0, 0.5}) {
    std::vector<std::vector<at::Tensor>> results;
    for (const GradientWire wire : {GradientWire::exact, GradientWire::bf16}) {
      run_ranks(3, [&](comm::Communicator& communicator) {
        TinyModel model;
        ShardedFusedbun optimizer(both(communicator), model.parameters,
                                  FusedbunOptions::recommended(kLr),
                                  {.min_rows_per_rank = 1,
                                   .bucket_bytes = 256,
                                   .max_grad_norm = max_grad_norm,
                                   .gradient_wire = wire,
                                   .host_window = false});
        for (int step = 0; step < 3; ++step) {
          at::Generator random = at::detail::createCPUGenerator(10 * step + communicator.rank());
          for (at::Tensor& parameter : model.tensors()) {
            parameter.mutable_grad() =
                at::randn(parameter.sizes(), random).to(at::kBFloat16).to(at::kFloat);
          }
          optimizer.step();
        }
        optimizer.finish();
        if (communicator.rank() != 1) return;
        results.emplace_back();
        for (const at::Tensor& value : testing::values_of(model.parameters))
          results.back().push_back(value.clone());
      });
    }
    expect_same_bits(results[1], results[0], "clipped at " + std::to_string(max_grad_norm));
  }
}

TEST(ShardedFusedbun, Bfloat16OnTheWireTrains) {
  const auto options = FusedbunOptions::recommended(kLr).eps(1e-4);
  const auto exact = trained(2, options, {.min_rows_per_rank = 1, .host_window = false});
  const auto rounded =
      trained(2, options,
              {.min_rows_per_rank = 1, .gradient_wire = GradientWire::bf16, .host_window = false});
  for (size_t p = 0; p < exact.size(); ++p) {
    const double distance = (exact[p] - rounded[p]).abs().max().item<double>();
    EXPECT_GT(distance, 0) << "nothing was rounded";
    EXPECT_LT(distance, kLr) << p;  // 8 bits of each gradient are left
  }
}

TEST(ShardedFusedbun, UpdatesInBfloat16AreThoseOfOneProcessRounded) {
  // In groups whose parameters' norm scales the step, that norm is of the rounded values.
  for (const bool scales : {false, true}) {
    auto options = FusedbunOptions::sm3(kLr).nonfinite(Nonfinite::skip);
    options.values().scale_by_parameter_rms = scales;
    for (const int ranks : {2, 4}) {  // the average of equal gradients is exact
      run_ranks(ranks, [&](comm::Communicator& communicator) {
        TinyModel sharded, alone;
        ShardedFusedbun optimizer(both(communicator), sharded.parameters, options,
                                  {.min_rows_per_rank = 1,
                                   .bucket_bytes = 256,
                                   .update_wire = UpdateWire::bf16,
                                   .host_window = false});
        Fusedbun reference(alone.parameters.values(), options);
        for (int step = 0; step < 4; ++step) {
          at::Generator random = at::detail::createCPUGenerator(step);
          std::vector<at::Tensor> before;
          for (size_t p = 0; p < alone.tensors().size(); ++p) {
            at::Tensor theirs = alone.tensors()[p], ours = sharded.tensors()[p];
            const at::Tensor gradient = at::randn(theirs.sizes(), random);
            theirs.mutable_grad() = gradient;
            ours.mutable_grad() = gradient.clone();
            before.push_back(theirs.detach().clone());
          }
          optimizer.step();
          reference.step();
          const at::NoGradGuard no_grad;
          for (size_t p = 0; p < before.size(); ++p) {
            at::Tensor theirs = alone.tensors()[p];
            theirs.copy_(before[p] + (theirs - before[p]).to(at::kBFloat16).to(at::kFloat));
            const at::Tensor ours = sharded.tensors()[p].detach();
            // Norms are sums, whose order may move a rounding.
            if (scales) {
              EXPECT_TRUE(at::allclose(ours, theirs, 1e-4, 1e-6)) << p << " in step " << step;
            } else {
              EXPECT_TRUE(at::equal(ours, theirs)) << p << " in step " << step;
            }
          }
        }
        const std::vector<double> squares = optimizer.state_to_save().sums_of_squares;
        for (size_t p = 0; scales && p < squares.size(); ++p) {
          const double expected =
              sharded.tensors()[p].detach().to(at::kDouble).square().sum().item<double>();
          EXPECT_NEAR(squares[p], expected, 1e-12 * expected) << p;
        }
        optimizer.finish();
      });
    }
  }
}

TEST(ShardedFusedbun, RefusesOptionsThatDifferBetweenRanks) {
  EXPECT_THROW(run_ranks(2,
                         [&](comm::Communicator& communicator) {
                           TinyModel model;
                           ShardedFusedbun optimizer(both(communicator), model.parameters,
                                                     FusedbunOptions::recommended(kLr).eps(
                                                         1e-8 * (1 + communicator.rank())));
                         }),
               ConfigError);
}

/// Rank 1 alone changes an option before step 1, and the ranks find it.
void expect_divergence_is_found(const std::function<void(FusedbunOptions&)>& change) {
  EXPECT_THROW(
      run_ranks(2,
                [&](comm::Communicator& communicator) {
                  TinyModel model;
                  ShardedFusedbun optimizer(both(communicator), model.parameters,
                                            FusedbunOptions::recommended(kLr));
                  for (int step = 0; step < 3; ++step) {
                    model.loss(batch(step, 4)).backward();
                    if (step == 1 && communicator.rank() == 1) {
                      change(static_cast<FusedbunOptions&>(optimizer.param_groups()[0].options()));
                    }
                    optimizer.step();
                  }
                }),
      DivergedError);
}

TEST(ShardedFusedbun, EndsWhenLearningRatesDivergeBetweenRanks) {
  expect_divergence_is_found([](FusedbunOptions& options) { options.set_lr(0.5); });
}

// Every option scales or decides something, so a rank that changes one alone is found in the next step.
TEST(ShardedFusedbun, EndsWhenAnyOptionDivergesBetweenRanks) {
  const std::vector<std::function<void(Options&)>> changes = {
      [](Options& o) { o.eps = 1e-6; }, [](Options& o) { o.beta_cap = 0.9; },
      [](Options& o) { o.nonfinite = Nonfinite::propagate; },
      [](Options& o) { o.mask = Mask::off; }};
  for (size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    expect_divergence_is_found([&](FusedbunOptions& options) { changes[i](options.values()); });
  }
}

// One rank's new memory is refused, and has by then gone nowhere: neither at the load nor before the agreement.
TEST(ShardedFusedbun, ARefusedParameterHasNotReachedTheReplica) {
  run_ranks(2, [](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr), {.min_rows_per_rank = 1});
    ASSERT_TRUE(optimizer.shares_memory());
    model.loss(batch(0, 4)).backward();
    optimizer.step();
    std::stringstream saved;
    torch::save(optimizer, saved);
    torch::load(optimizer, saved);
    const at::Tensor before = model.parameters["in.weight"].detach().clone();
    communicator.barrier().wait();
    if (communicator.rank() == 0) {
      model.parameters["in.weight"].set_data(at::full({16, 8}, 7.0f));
    }
    model.loss(batch(1, 4)).backward();
    EXPECT_THROW(optimizer.step(), ConfigError);
    if (communicator.rank() == 1) {
      EXPECT_TRUE(at::equal(model.parameters["in.weight"].detach(), before));
    }
  });
}

TEST(ShardedFusedbun, LeavesOnAllRanksAtTheSameStep) {
  std::vector<int64_t> left_at(3);
  run_ranks(3, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    for (int step = 0; step < 20; ++step) {
      model.loss(batch(step, 4)).backward();
      if (step == 4 && communicator.rank() == 2)
        optimizer.request_leave(changes::LeaveRequest::drain);
      optimizer.step();
      if (optimizer.leave_request() != changes::LeaveRequest::none) break;
    }
    left_at[communicator.rank()] = optimizer.job_step();
    optimizer.finish();
  });
  EXPECT_THAT(left_at, ::testing::Each(6));  // announced by the header of step 4, read in step 5
}

/// Accepts fixed changes at fixed steps.
class ScriptedControl : public changes::ControlPort {
 public:
  int64_t newest_revision() override { return newest_; }
  Boundary close_step(int64_t job_step) override {
    if (job_step == 2) newest_ = 1;
    if (job_step == 4) newest_ = 3;
    return {newest_, changes::LeaveRequest::none};
  }
  std::vector<changes::ChangeEntry> entries(int64_t after, int64_t up_to) override {
    std::vector<changes::ChangeEntry> due;
    for (const changes::ChangeEntry& entry : all_) {
      if (entry.revision > after && entry.revision <= up_to) due.push_back(entry);
    }
    return due;
  }
  void step_finished(const changes::StepReport& report) override { reports.push_back(report); }

  std::vector<changes::StepReport> reports;

 private:
  int64_t newest_ = 0;
  std::vector<changes::ChangeEntry> all_ = {
      {.revision = 1, .effective_step = 4, .field = changes::Field::learning_rate, .value = 0.25},
      {.revision = 2, .effective_step = 6, .field = changes::Field::weight_decay, .value = 0.75},
      {.revision = 3, .effective_step = 7, .field = changes::Field::max_grad_norm, .value = 2.0},
  };
};

TEST(ShardedFusedbun, UsesAChangeFromExactlyItsStepOnAllRanks) {
  ScriptedControl control;
  run_ranks(3, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr).Lambda(0));
    optimizer.set_control(communicator.rank() == 0 ? &control : nullptr);
    for (int step = 0; step < 9; ++step) {
      model.loss(batch(step, 4)).backward();
      optimizer.step();
      const changes::StepReport& report = optimizer.report();
      EXPECT_EQ(report.job_step, step);
      EXPECT_EQ(report.group_options[0].lr, step < 4 ? kLr : 0.25) << step;
      EXPECT_EQ(report.group_options[0].Lambda, step < 6 ? 0 : 0.75) << step;
      EXPECT_EQ(report.max_grad_norm, step < 7 ? 0 : 2.0) << step;
      EXPECT_EQ(report.active_revision, step < 4 ? 0 : step < 6 ? 1 : step < 7 ? 2 : 3) << step;
    }
    optimizer.finish();
  });
  EXPECT_EQ(control.reports.size(), 9u);
}

/// Asks for a checkpoint with the header of step 3.
class AsksForACheckpoint : public changes::ControlPort {
 public:
  int64_t newest_revision() override { return 0; }
  Boundary close_step(int64_t job_step) override {
    return {.newest_revision = 0, .checkpoint = job_step == 3};
  }
  std::vector<changes::ChangeEntry> entries(int64_t, int64_t) override { return {}; }
  void step_finished(const changes::StepReport&) override {}
};

// Saving reads the last step's header early: the request must not come a step too soon then, nor be lost.
TEST(ShardedFusedbun, ACheckpointIsAskedForOnAllRanksAfterTheSameStep) {
  AsksForACheckpoint control;
  for (const bool saves_every_step : {false, true}) {
    std::vector<std::vector<int64_t>> asked_after(3);
    run_ranks(3, [&](comm::Communicator& communicator) {
      TinyModel model;
      ShardedFusedbun optimizer(both(communicator), model.parameters,
                                FusedbunOptions::recommended(kLr));
      optimizer.set_control(communicator.rank() == 0 ? &control : nullptr);
      for (int step = 0; step < 8; ++step) {
        model.loss(batch(step, 4)).backward();
        optimizer.step();
        if (optimizer.checkpoint_requested())
          asked_after[communicator.rank()].push_back(optimizer.job_step());
        if (saves_every_step) optimizer.state_to_save();
      }
      optimizer.finish();
    });
    EXPECT_THAT(asked_after, ::testing::Each(::testing::ElementsAre(5))) << saves_every_step;
  }
}

/// Asks for a pause with the header of step `asks_at`, and holds the job for three looks; then `leave`.
class AsksForAPause : public changes::ControlPort {
 public:
  int64_t newest_revision() override { return 0; }
  Boundary close_step(int64_t job_step) override {
    closed = job_step;
    return {.checkpoint = checkpoint_at == job_step, .pause = job_step == asks_at};
  }
  std::vector<changes::ChangeEntry> entries(int64_t, int64_t) override { return {}; }
  void step_finished(const changes::StepReport&) override {}
  Boundary held() override {
    held_after.push_back(closed);
    const bool is_over = held_after.size() % 3 == 0;
    return {.leave = is_over ? leave : changes::LeaveRequest::none, .pause = !is_over || keeps};
  }
  void hold_ended(changes::LeaveRequest left) override { ended.push_back(left); }

  int64_t asks_at = 3, checkpoint_at = -1, closed = -1;
  changes::LeaveRequest leave = changes::LeaveRequest::none;
  bool keeps = false;  ///< the pause is not taken back
  std::vector<int64_t> held_after;
  std::vector<changes::LeaveRequest> ended;
};

/// Job steps done by each rank.
std::vector<int64_t> run_paused(AsksForAPause& control, std::vector<double>* held = nullptr) {
  std::vector<int64_t> steps(3);
  run_ranks(3, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    const int rank = communicator.rank();
    optimizer.set_control(rank == 0 ? &control : nullptr);
    for (int step = 0; step < 8 && optimizer.leave_request() == changes::LeaveRequest::none;
         ++step) {
      model.loss(batch(step, 4)).backward();
      optimizer.step();
      if (rank == 0) {
        EXPECT_EQ(control.held_after.size(), step < 4 ? 0U : 3U) << step;
      }
    }
    steps[rank] = optimizer.job_step();
    if (held != nullptr) held->at(rank) = optimizer.held_seconds();
    optimizer.finish();
  });
  return steps;
}

TEST(ShardedFusedbun, APauseHoldsAllRanksAfterTheStepThatReadsOfIt) {
  AsksForAPause control;
  std::vector<double> held(3);
  EXPECT_THAT(run_paused(control, &held), ::testing::Each(8));
  EXPECT_THAT(control.held_after, ::testing::ElementsAre(4, 4, 4));
  EXPECT_THAT(control.ended, ::testing::ElementsAre(changes::LeaveRequest::none));
  EXPECT_THAT(held, ::testing::Each(::testing::Ge(0.2)));  // two ticks of 0.1 s
}

TEST(ShardedFusedbun, AJobMayBeAskedToLeaveOutOfAPause) {
  for (const auto leave : {changes::LeaveRequest::drain, changes::LeaveRequest::stop}) {
    AsksForAPause control;
    control.leave = leave;
    control.keeps = true;
    EXPECT_THAT(run_paused(control), ::testing::Each(5)) << "no step is done after it";
    EXPECT_THAT(control.ended, ::testing::ElementsAre(leave));
  }
}

TEST(ShardedFusedbun, ASignalOnAnyRankEndsAPause) {
  AsksForAPause control;
  control.keeps = true;
  std::vector<int64_t> steps(3);
  run_ranks(3, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    const int rank = communicator.rank();
    optimizer.set_control(rank == 0 ? &control : nullptr);
    std::thread signal;
    for (int step = 0; step < 8 && optimizer.leave_request() == changes::LeaveRequest::none;
         ++step) {
      if (step == 4 && rank == 2) {
        signal = std::thread([&] {
          std::this_thread::sleep_for(std::chrono::milliseconds(500));
          optimizer.request_leave(changes::LeaveRequest::drain);
        });
      }
      model.loss(batch(step, 4)).backward();
      optimizer.step();
    }
    if (signal.joinable()) signal.join();
    steps[rank] = optimizer.job_step();
    EXPECT_EQ(optimizer.leave_request(), changes::LeaveRequest::drain);
    optimizer.finish();
  });
  EXPECT_THAT(steps, ::testing::Each(5));
}

// Both are asked for at the same boundary: the program saves after step 4, so the job is held after step 5.
TEST(ShardedFusedbun, ACheckpointComesBeforeAPause) {
  AsksForAPause control;
  control.checkpoint_at = 3;
  std::vector<int64_t> saved_after;
  run_ranks(2, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr));
    optimizer.set_control(communicator.rank() == 0 ? &control : nullptr);
    for (int step = 0; step < 8; ++step) {
      model.loss(batch(step, 4)).backward();
      optimizer.step();
      if (communicator.rank() == 0 && optimizer.checkpoint_requested()) {
        EXPECT_TRUE(control.held_after.empty());
        saved_after.push_back(step);
      }
    }
    optimizer.finish();
  });
  EXPECT_THAT(saved_after, ::testing::ElementsAre(4));
  EXPECT_THAT(control.held_after, ::testing::ElementsAre(5, 5, 5));
}

// A pinned rate, a scale and a clip limit that people set while the job ran belong to its state.
TEST(ShardedFusedbun, SavesWhatWasChangedWhileItRan) {
  const auto at = [](changes::Field field, double value) {
    changes::ScheduledChange change;
    change.request.patches = {{"*", field, value}};
    change.request.apply_at_step = 0;
    return change;
  };
  const changes::ScheduledChange scheduled[] = {at(changes::Field::learning_rate, 0.25),
                                                at(changes::Field::lr_scale, 2),
                                                at(changes::Field::max_grad_norm, 3)};
  const Options options = FusedbunOptions::recommended(kLr).values();
  changes::ChangeSchedule schedule(changes::ChangeLedger({{"default", 1, options}}, 0, 0),
                                   scheduled);
  run_ranks(2, [&](comm::Communicator& communicator) {
    TinyModel model;
    std::stringstream saved;
    {
      ShardedFusedbun optimizer(both(communicator), model.parameters,
                                FusedbunOptions::recommended(kLr));
      optimizer.set_control(communicator.rank() == 0 ? &schedule : nullptr);
      model.loss(batch(0, 4)).backward();
      optimizer.step();
      torch::save(optimizer, saved);
    }
    ShardedFusedbun again(both(communicator), model.parameters, FusedbunOptions::recommended(kLr));
    torch::load(again, saved);
    model.loss(batch(1, 4)).backward();
    again.step();
    EXPECT_EQ(again.report().group_options[0].lr, 0.25);
    EXPECT_EQ(again.report().lr_scale, 2);
    EXPECT_EQ(again.report().max_grad_norm, 3);
    EXPECT_EQ(again.report().job_step, 1);
  });
}

TEST(ShardedFusedbun, ChangesKnownAtTheStartAreUsedAlreadyInTheFirstStep) {
  const auto at = [](int64_t step, changes::Field field, double value) {
    changes::ScheduledChange change;
    change.request.apply_at_step = step;
    change.request.patches = {{"*", field, value}};
    return change;
  };
  const changes::ScheduledChange scheduled[] = {at(1, changes::Field::weight_decay, 0.5),
                                                at(0, changes::Field::learning_rate, 0.25),
                                                at(3, changes::Field::lr_scale, 2)};
  const Options options = FusedbunOptions::recommended(kLr).Lambda(0).values();
  changes::ChangeSchedule schedule(changes::ChangeLedger({{"default", 1, options}}, 0, 0),
                                   scheduled);
  run_ranks(3, [&](comm::Communicator& communicator) {
    TinyModel model;
    ShardedFusedbun optimizer(both(communicator), model.parameters,
                              FusedbunOptions::recommended(kLr).Lambda(0));
    optimizer.set_control(communicator.rank() == 0 ? &schedule : nullptr);
    for (int step = 0; step < 5; ++step) {
      model.loss(batch(step, 4)).backward();
      optimizer.step();
      const changes::StepReport& report = optimizer.report();
      EXPECT_EQ(report.group_options[0].lr, 0.25) << step;
      EXPECT_EQ(report.group_options[0].Lambda, step < 1 ? 0 : 0.5) << step;
      EXPECT_EQ(report.lr_scale, step < 3 ? 1 : 2) << step;
    }
    optimizer.finish();
  });
}

}  // namespace
}  // namespace fusedbun

// A run that was stopped after any of its steps and goes on is the run that was not stopped, bit for bit.
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <map>
#include <thread>

#include "fusedbun/dist/snapshot/checkpointer.h"
#include "local_ranks.h"
#include "random_model.h"
#include "scratch_folder.h"
#include "whole_state.h"

namespace fusedbun {
namespace {

using testing::WholeState;

constexpr int kSteps = 40;

struct Case {
  const char* name;
  FusedbunOptions options;
  at::ScalarType type;
  int world_size;
  double max_grad_norm = 0;
  bool host_window = true;
  bool program_writes = false;  ///< parameters, between two steps
  /// Buckets are stepped in backward and clipped by the norm of the step before, so every parameter has a finite gradient in each step.
  bool in_backward = false;

  FusedbunOptions all_options() const {
    FusedbunOptions all = options;
    return in_backward ? all.nonfinite(Nonfinite::propagate) : all;
  }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

const std::vector<std::vector<int64_t>>& shapes() {
  static const std::vector<std::vector<int64_t>> list{{17, 6}, {3, 4}, {11}, {}, {4, 2, 3}};
  return list;
}

/// One rank's training program: what it does in a step depends on the step's number alone.
class Program {
 public:
  Program(comm::Communicator& ranks, const Case& c, uint64_t seed)
      : case_(c),
        rank_(ranks.rank()),
        model_(testing::as_model(testing::random_parameters(shapes(), c.type, seed))),
        gradients_(testing::random_gradients(shapes(), c.type, kSteps, !c.in_backward,
                                             seed + static_cast<uint64_t>(rank_))),
        optimizer_({&ranks, &ranks}, model_, c.all_options(), sharded_options(c)) {}

  void step(int number) {
    for (size_t p = 0; p < model_.size(); ++p) {
      model_[p].value().mutable_grad() = gradients_[static_cast<size_t>(number)][p];
    }
    // One step in between is skipped: a rank saw a NaN.
    if (number == kSteps / 2 && rank_ == 0 && !case_.in_backward) {
      model_[0].value().mutable_grad() = at::full_like(model_[0].value(), NAN);
    }
    optimizer_.step();
    if (case_.program_writes && number % 3 == 0) {
      const at::NoGradGuard no_grad;
      model_[0].value().clamp_(-0.5, 0.5);
    }
  }
  ShardedFusedbun& optimizer() { return optimizer_; }

 private:
  static ShardedOptions sharded_options(const Case& c) {
    ShardedOptions options;
    options.min_rows_per_rank = 2;
    options.max_grad_norm = c.max_grad_norm;
    options.step_in_backward = options.clip_by_previous_norm = c.in_backward;
    options.host_window = c.host_window;
    return options;
  }

  const Case& case_;
  int rank_;
  torch::OrderedDict<std::string, torch::Tensor> model_;
  testing::Gradients gradients_;
  ShardedFusedbun optimizer_;
};

class Resume : public ::testing::TestWithParam<Case> {};

TEST_P(Resume, AfterAnyStepIsTheRunThatWasNotStopped) {
  const Case& c = GetParam();
  const uint64_t seed = testing::seed_from_environment(20261127);
  SCOPED_TRACE("FUSEDBUN_TEST_SEED=" + std::to_string(seed));
  const support::ScratchFolder scratch;
  const CheckpointerOptions options{.folder = scratch / "checkpoints", .keep = 0};
  std::map<int, WholeState> after;  // [steps done]
  for (int step = 1; step <= kSteps; ++step) after[step];
  testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
    Program program(ranks, c, seed);
    Checkpointer checkpointer(ranks, options);
    for (int step = 0; step < kSteps; ++step) {
      program.step(step);
      // Training goes on while the state of this step is written.
      while (checkpointer.save({.optimizer = &program.optimizer()}) == SaveStart::under_way) {
        std::this_thread::yield();
      }
      after.at(step + 1).lay_in(program.optimizer());
    }
    checkpointer.wait();
    EXPECT_EQ(checkpointer.status().failed_saves, 0);
  });
  for (int stop = 1; stop < kSteps; ++stop) {
    SCOPED_TRACE("stopped after " + std::to_string(stop) + " steps");
    testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
      Program program(ranks, c, seed + 1);  // other values, all of which the load replaces
      Checkpointer checkpointer(ranks, options);
      const auto loaded =
          checkpointer.load({.optimizer = &program.optimizer()}, {.job_step = stop});
      ASSERT_TRUE(loaded.has_value());
      ASSERT_EQ(after.at(stop).difference(program.optimizer()), "");
    });
  }
  for (int stop = 1; stop < kSteps; ++stop) {
    SCOPED_TRACE("resumed after " + std::to_string(stop) + " steps");
    testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
      Program program(ranks, c, seed);
      Checkpointer checkpointer(ranks, options);
      ASSERT_TRUE(checkpointer.load({.optimizer = &program.optimizer()}, {.job_step = stop}));
      for (int step = stop; step < kSteps; ++step) program.step(step);
      EXPECT_EQ(after.at(kSteps).difference(program.optimizer()), "");
      EXPECT_EQ(program.optimizer().skipped_steps(), c.in_backward ? 0 : 1);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Programs, Resume,
    ::testing::Values(
        Case{"recommended_window", FusedbunOptions::recommended(1e-2), at::kFloat, 3},
        Case{"bf16_with_masters", FusedbunOptions::recommended(1e-2), at::kBFloat16, 2, 0, false},
        Case{"compact", FusedbunOptions::compact(0.1), at::kFloat, 2, 0, false},
        Case{"compact_written_by_the_program", FusedbunOptions::compact(0.1), at::kBFloat16, 2, 0,
             false, true},
        Case{"clipped_and_alone", FusedbunOptions::sm3(1e-2), at::kFloat, 1, 0.5},
        Case{"bf16_with_remainders",
             FusedbunOptions::recommended(1e-2).low_precision(LowPrecision::remainder),
             at::kBFloat16, 2, 0, false},
        Case{"bf16_rounded_in_backward",
             FusedbunOptions::compact(0.1).low_precision(LowPrecision::stochastic), at::kBFloat16,
             2, 0.5, false, false, true}),
    [](const auto& info) { return std::string(info.param.name); });

// ---- one process --------------------------------------------------------------------------------

TEST(ResumePlain, AfterAnyStepIsTheRunThatWasNotStopped) {
  const uint64_t seed = testing::seed_from_environment(20261127);
  for (const char* preset : {"recommended", "compact"}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(std::string(preset) + " " + c10::toString(type));
      const support::ScratchFolder scratch;
      const auto gradients = testing::random_gradients(shapes(), type, kSteps, true, seed);
      const auto make = [&](uint64_t with) {
        auto parameters = testing::random_parameters(shapes(), type, with);
        for (at::Tensor& parameter : parameters) parameter.requires_grad_();
        return parameters;
      };
      const auto step = [&](Fusedbun& optimizer, std::vector<at::Tensor>& parameters, int number) {
        for (size_t p = 0; p < parameters.size(); ++p) {
          parameters[p].mutable_grad() = gradients[static_cast<size_t>(number)][p];
        }
        optimizer.step();
      };
      Checkpointer checkpointer({.folder = scratch / "checkpoints", .keep = 0});
      std::vector<at::Tensor> expected = make(seed);
      Fusedbun whole(expected, FusedbunOptions::of_preset(preset, 1e-2));
      for (int number = 0; number < kSteps; ++number) {
        step(whole, expected, number);
        while (checkpointer.save({.optimizer = &whole}) == SaveStart::under_way) {
          std::this_thread::yield();
        }
      }
      checkpointer.wait();
      for (int stop = 1; stop < kSteps; ++stop) {
        SCOPED_TRACE("resumed after step " + std::to_string(stop));
        std::vector<at::Tensor> parameters = make(seed + 1);
        Fusedbun optimizer(parameters, FusedbunOptions::of_preset(preset, 1e-2));
        ASSERT_TRUE(checkpointer.load({.optimizer = &optimizer}, {.job_step = stop}));
        for (int number = stop; number < kSteps; ++number) {
          step(optimizer, parameters, number);
        }
        for (size_t p = 0; p < parameters.size(); ++p) {
          EXPECT_TRUE(at::equal(parameters[p], expected[p])) << "parameter " << p;
        }
      }
    }
  }
}

/// Gives parameters the names p0, p1, ..., in any holder.
struct Named : torch::nn::Module {
  explicit Named(const torch::OrderedDict<std::string, torch::Tensor>& parameters) {
    for (const auto& item : parameters) register_parameter(item.key(), item.value());
  }
};

TEST(ResumePlain, WhatOneProcessSavedSeveralRanksLoad) {
  const uint64_t seed = testing::seed_from_environment(20261127);
  const support::ScratchFolder scratch;
  const CheckpointerOptions options{.folder = scratch / "checkpoints"};
  auto model = testing::as_model(testing::random_parameters(shapes(), at::kFloat, seed));
  const auto gradients = testing::random_gradients(shapes(), at::kFloat, 3, false, seed);
  std::vector<at::Tensor> parameters;
  for (const auto& item : model) parameters.push_back(item.value());
  Fusedbun alone(parameters, FusedbunOptions::recommended(1e-2));
  for (const auto& step : gradients) {
    for (size_t p = 0; p < step.size(); ++p) parameters[p].mutable_grad() = step[p];
    alone.step();
  }
  Checkpointer checkpointer(options);
  Named names(model);
  checkpointer.save({.optimizer = &alone, .model = &names});
  checkpointer.wait();
  testing::run_ranks(3, [&](comm::Communicator& ranks) {
    auto other = testing::as_model(testing::random_parameters(shapes(), at::kFloat, seed + 1));
    std::vector<at::Tensor> tensors;
    for (const auto& item : other) tensors.push_back(item.value());
    ShardedFusedbun sharded({&ranks, &ranks}, other, FusedbunOptions::recommended(1e-2));
    Checkpointer loader(ranks, options);
    Named other_names(other);
    ASSERT_TRUE(loader.load({.optimizer = &sharded, .model = &other_names}));
    EXPECT_EQ(sharded.job_step(), 3);
    for (size_t p = 0; p < parameters.size(); ++p) {
      EXPECT_TRUE(at::equal(tensors[p], parameters[p]));
    }
    EXPECT_EQ(testing::state_difference(sharded, alone, parameters, 0), "");
  });
}

}  // namespace
}  // namespace fusedbun

// A gradient that is no number, on one rank, skips the step on all: as if the step had not been, before and after a checkpoint.
#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <limits>
#include <map>
#include <random>
#include <thread>

#include "fusedbun/dist/snapshot/checkpointer.h"
#include "local_ranks.h"
#include "random_model.h"
#include "scratch_folder.h"
#include "whole_state.h"

namespace fusedbun {
namespace {

using testing::WholeState;

constexpr int kSteps = 24;
constexpr int kBadSteps = 6;

struct Case {
  const char* name;
  FusedbunOptions options;
  at::ScalarType type;
  int world_size;
  double max_grad_norm = 0;
  bool host_window = true;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

const std::vector<std::vector<int64_t>>& shapes() {
  static const std::vector<std::vector<int64_t>> list{{17, 6}, {3, 4}, {11}, {}, {4, 2, 3}};
  return list;
}

/// One element of one rank's gradients in one step.
struct BadElement {
  int rank = 0;
  size_t parameter = 0;
  double where = 0;  ///< 0 to 1
  float value = 0;
};
using BadSteps = std::map<int, BadElement>;

/// Two of them are neighbours.
BadSteps draw_bad_steps(std::mt19937_64& random, int world_size) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float values[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity};
  const auto below = [&](size_t end) { return random() % end; };
  BadSteps steps;
  const auto add = [&](int step) {
    steps[step] = {static_cast<int>(below(static_cast<size_t>(world_size))), below(shapes().size()),
                   static_cast<double>(below(1000)) / 1000, values[below(3)]};
  };
  const int first = static_cast<int>(below(kSteps - 1));
  add(first);
  add(first + 1);
  while (steps.size() < kBadSteps) add(static_cast<int>(below(kSteps)));
  return steps;
}

class Program {
 public:
  Program(comm::Communicator& ranks, const Case& c, const BadSteps& bad, uint64_t seed)
      : bad_(bad),
        rank_(ranks.rank()),
        model_(testing::as_model(testing::random_parameters(shapes(), c.type, seed))),
        optimizer_({&ranks, &ranks}, model_, c.options, options_of(c)) {}

  /// They depend on the step's number and the rank alone.
  static testing::Gradients gradients(const Case& c, uint64_t seed, int rank) {
    return testing::random_gradients(shapes(), c.type, kSteps, true,
                                     seed + 1000 + static_cast<uint64_t>(rank));
  }

  void step(int number, const testing::Gradients& gradients) {
    for (size_t p = 0; p < model_.size(); ++p) {
      const at::Tensor& gradient = gradients[static_cast<size_t>(number)][p];
      model_[p].value().mutable_grad() = gradient.defined() ? gradient.clone() : gradient;
    }
    if (const auto bad = bad_.find(number); bad != bad_.end() && bad->second.rank == rank_) {
      spoil(bad->second);
    }
    optimizer_.step();
  }
  ShardedFusedbun& optimizer() { return optimizer_; }
  const torch::OrderedDict<std::string, torch::Tensor>& model() const { return model_; }

 private:
  static ShardedOptions options_of(const Case& c) {
    ShardedOptions options;
    options.min_rows_per_rank = 2;
    options.max_grad_norm = c.max_grad_norm;
    options.host_window = c.host_window;
    return options;
  }

  void spoil(const BadElement& bad) {
    at::Tensor& parameter = model_[bad.parameter].value();
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter);
    const auto count = static_cast<double>(parameter.numel());
    parameter.mutable_grad().view(-1)[static_cast<int64_t>(bad.where * count)] = bad.value;
  }

  const BadSteps& bad_;
  int rank_;
  torch::OrderedDict<std::string, torch::Tensor> model_;
  ShardedFusedbun optimizer_;
};

class SkippedStep : public ::testing::TestWithParam<Case> {};

TEST_P(SkippedStep, IsAsIfItHadNotBeenOnAllRanksAndAfterACheckpointToo) {
  const Case& c = GetParam();
  const uint64_t seed = testing::seed_from_environment(std::random_device{}());
  std::cout << "FUSEDBUN_TEST_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  const BadSteps bad = draw_bad_steps(random, c.world_size);
  const BadSteps none;
  const support::ScratchFolder scratch;
  const CheckpointerOptions options{.folder = scratch / "checkpoints", .keep = 0};
  std::map<int, WholeState> before;  // [bad step]
  for (const auto& [step, element] : bad) before[step];
  WholeState end;
  testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
    const auto gradients = Program::gradients(c, seed, ranks.rank());
    Program program(ranks, c, bad, seed);
    Checkpointer checkpointer(ranks, options);
    int64_t skipped = 0;
    for (int step = 0; step < kSteps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      const bool is_bad = bad.contains(step);
      if (is_bad) before.at(step).lay_in(program.optimizer());
      program.step(step, gradients);
      skipped += is_bad ? 1 : 0;
      ASSERT_EQ(program.optimizer().report().skipped, is_bad);  // on every rank
      ASSERT_EQ(program.optimizer().skipped_steps(), skipped);
      ASSERT_EQ(program.optimizer().job_step(), step + 1);
      if (!is_bad) continue;
      ASSERT_EQ(before.at(step).difference(program.optimizer()), "");
      for (const auto& item : program.model()) {
        ASSERT_TRUE(before.at(step).has_values(item.key(), item.value())) << item.key();
      }
      while (checkpointer.save({.optimizer = &program.optimizer()}) == SaveStart::under_way) {
        std::this_thread::yield();
      }
    }
    checkpointer.wait();
    ASSERT_EQ(checkpointer.status().failed_saves, 0);
    end.lay_in(program.optimizer());
  });
  testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
    SCOPED_TRACE("without those steps");
    const auto gradients = Program::gradients(c, seed, ranks.rank());
    Program program(ranks, c, none, seed);
    for (int step = 0; step < kSteps; ++step) {
      if (!bad.contains(step)) program.step(step, gradients);
    }
    EXPECT_EQ(end.difference(program.optimizer()), "");
    EXPECT_EQ(program.optimizer().skipped_steps(), 0);
  });
  int64_t skipped = 0;
  for (const auto& [stop, element] : bad) {
    SCOPED_TRACE("resumed right after skipped step " + std::to_string(stop));
    ++skipped;
    testing::run_ranks(c.world_size, [&](comm::Communicator& ranks) {
      const auto gradients = Program::gradients(c, seed, ranks.rank());
      Program program(ranks, c, bad, seed + 1);  // other values, all of which the load replaces
      Checkpointer checkpointer(ranks, options);
      ASSERT_TRUE(checkpointer.load({.optimizer = &program.optimizer()}, {.job_step = stop + 1}));
      ASSERT_EQ(before.at(stop).difference(program.optimizer()), "");
      ASSERT_EQ(program.optimizer().skipped_steps(), skipped);
      ASSERT_EQ(program.optimizer().job_step(), stop + 1);
      for (int step = stop + 1; step < kSteps; ++step) program.step(step, gradients);
      EXPECT_EQ(end.difference(program.optimizer()), "");
      EXPECT_EQ(program.optimizer().skipped_steps(), kBadSteps);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Programs, SkippedStep,
    ::testing::Values(
        Case{"recommended_window", FusedbunOptions::recommended(1e-2), at::kFloat, 3},
        Case{"recommended_messages", FusedbunOptions::recommended(1e-2), at::kFloat, 4, 0, false},
        Case{"bf16_with_masters", FusedbunOptions::recommended(1e-2), at::kBFloat16, 2, 0, false},
        Case{"compact", FusedbunOptions::compact(0.1), at::kFloat, 3},
        Case{"clipped", FusedbunOptions::sm3(1e-2), at::kFloat, 2, 0.5},
        Case{"alone", FusedbunOptions::recommended(1e-2), at::kFloat, 1}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace fusedbun

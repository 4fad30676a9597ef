// Whole training steps of the sharded optimizer on ranks with a GPU each, by lazy doubles of GPUs and NCCL: the same bits as on CPUs, for every
// preset, with skipped steps, dirty buckets, step in backward; and how often a step gives the device something, which no number of parameters
// changes.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/ordered_dict.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>

#include "cuda_on_cpu.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/nccl_api.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/tests/core/random_segment.h"
#include "fusedbun/tests/support/local_ranks.h"
#include "lazy_device.h"
#include "lazy_nccl.h"
#include "parameter_kind.h"

namespace fusedbun {
namespace {

const std::vector<ParameterKind> kKinds = {{{33, 48}},
                                           {{7}},
                                           {{64, 40}},
                                           {{3, 20, 24}},
                                           {{5, 1037}},
                                           {{40, 12}, at::kFloat, true},
                                           {{64, 32}, at::kBFloat16},
                                           {{24, 11}, at::kDouble},
                                           {{2050}}};

struct Program {
  int ranks = 2;
  Options options;
  ShardedOptions sharded;
  std::vector<ParameterKind> kinds = kKinds;
  int steps = 4;
  /// Spoils a gradient of one rank in a step.
  std::function<bool(int rank, int step)> is_spoilt = [](int, int) { return false; };
  /// Whether a parameter takes part.
  std::function<bool(int step, size_t parameter)> is_used = [](int, size_t) { return true; };
  int passes =
      1;  ///< backward passes of a step, without no_sync: all but the last make buckets dirty
  /// Whether a parameter takes part in one of them.
  std::function<bool(int pass, size_t parameter)> is_in_pass = [](int, size_t) { return true; };
  using Parameters = torch::OrderedDict<std::string, at::Tensor>;
  /// What the program does beside: after the first pass of a step, and between two steps.
  std::function<void(ShardedFusedbun&)> after_first_pass = [](ShardedFusedbun&) {};
  std::function<void(ShardedFusedbun&, Parameters&, int rank, int step)> after_step =
      [](ShardedFusedbun&, Parameters&, int, int) {};
  /// While the device may still be at it.
  std::function<void(ShardedFusedbun&, int rank)> right_after_step = [](ShardedFusedbun&, int) {};
  uint64_t seed = 1;
};

at::Tensor drawn(const ParameterKind& kind, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(kind.shape, generator, at::TensorOptions().dtype(at::kDouble));
}

// What a run leaves: by step the parameters of each rank, in the end each rank's state.
struct Left {
  std::vector<std::vector<at::Tensor>> parameters;  // [step · ranks + rank][parameter]
  std::vector<std::vector<at::Tensor>> states;      // [rank]
  std::vector<int64_t> skipped;                     // [rank]
  std::vector<std::vector<int64_t>> t;              // [rank]
};

class Job {
 public:
  Job(const Program& program, LazyDevice* device) : program_(program), device_(device) {
    left_.parameters.resize(static_cast<size_t>(program.steps * program.ranks));
    left_.states.resize(static_cast<size_t>(program.ranks));
    left_.t.resize(static_cast<size_t>(program.ranks));
    left_.skipped.resize(static_cast<size_t>(program.ranks));
  }

  Left run() {
    testing::run_ranks(program_.ranks, [&](comm::Communicator& host) {
      std::unique_ptr<comm::Communicator> data;
      if (device_ != nullptr)
        data =
            comm::connect_nccl({.rank = host.rank(), .size = host.size()}, host, comm::lazy_nccl());
      train({.data = data ? data.get() : &host, .host = &host}, host.rank());
    });
    return std::move(left_);
  }

 private:
  void catch_up() {
    if (device_ != nullptr) device_->catch_up();
  }

  void train(const Channels& channels, int rank) {
    torch::OrderedDict<std::string, at::Tensor> parameters;
    for (size_t p = 0; p < program_.kinds.size(); ++p) {
      at::Tensor values = program_.kinds[p].made_of(drawn(program_.kinds[p], program_.seed + p));
      parameters.insert("p" + std::to_string(p), values.requires_grad_());
    }
    ShardedFusedbun optimizer(channels, parameters, FusedbunOptions(program_.options),
                              program_.sharded);
    for (int step = 0; step < program_.steps; ++step) {
      for (int pass = 0; pass < program_.passes; ++pass) {
        backward(optimizer, parameters, rank, step, pass);
        if (pass == 0) program_.after_first_pass(optimizer);
      }
      optimizer.step();
      program_.right_after_step(optimizer, rank);
      catch_up();
      for (const auto& item : parameters)
        left_.parameters[static_cast<size_t>(step * program_.ranks + rank)].push_back(
            item.value().detach().clone());
      program_.after_step(optimizer, parameters, rank, step);
      catch_up();
    }
    optimizer.finish();
    left_.skipped[rank] = optimizer.skipped_steps();
    for (const ShardedFusedbun::OwnedRows& rows : optimizer.owned_rows()) {
      left_.t[rank].push_back(rows.t);
      visit_tensors(*rows.state, [&](const char*, at::Tensor& tensor) {
        if (tensor.defined()) left_.states[rank].push_back(tensor.clone());
      });
    }
  }

  // p.grad becomes what is drawn for this rank, step and parameter.
  void backward(ShardedFusedbun& optimizer,
                const torch::OrderedDict<std::string, at::Tensor>& parameters, int rank, int step,
                int pass) {
    catch_up();
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (size_t p = 0; p < program_.kinds.size(); ++p) {
      if (!program_.is_used(step, p) || !program_.is_in_pass(pass, p)) continue;
      at::Tensor g = drawn(program_.kinds[p],
                           1000 + program_.seed +
                               static_cast<uint64_t>(((step * 7 + rank) * 5 + pass) * 31) + p)
                         .to(program_.kinds[p].type);
      if (p == 2 && pass == 0 && program_.is_spoilt(rank, step))
        g.view(-1)[17] = std::numeric_limits<double>::quiet_NaN();
      loss = loss + (parameters["p" + std::to_string(p)] * g).sum().to(at::kDouble);
    }
    optimizer.scale_loss(loss).backward();
  }

  const Program& program_;
  LazyDevice* const device_;
  Left left_;
};

class ShardedOnDevices : public ::testing::Test {
 protected:
  ShardedOnDevices() : seed_(test_seed()) {
    lazy_cuda::set_eagerness(seed_, static_cast<int>(seed_ % 3));
    cuda_on_cpu::set_order(seed_);
  }

  Left on_devices(const Program& program) {
    const StandInDevice stand_in(device_);
    return Job(program, &device_).run();
  }

  // `tolerance` 0: the same bits.
  void expect_the_cpus_run(Program program, double tolerance = 0) {
    program.seed = seed_ % 1000;
    Program on_cpus = program;
    on_cpus.sharded.host_window = false;
    const Left want = Job(on_cpus, nullptr).run();
    const Left have = on_devices(program);
    std::string text;
    for (size_t i = 0; i < want.parameters.size() && text.empty(); ++i) {
      for (size_t p = 0; p < want.parameters[i].size(); ++p) {
        if (!is_same(want.parameters[i][p], have.parameters[i][p], tolerance))
          text += " parameter " + std::to_string(p);
      }
      if (!text.empty())
        text = "step " + std::to_string(i / static_cast<size_t>(program.ranks)) + ", rank " +
               std::to_string(i % static_cast<size_t>(program.ranks)) + ":" + text;
    }
    for (size_t rank = 0; rank < want.states.size(); ++rank) {
      EXPECT_EQ(want.t[rank], have.t[rank]);
      for (size_t i = 0; i < want.states[rank].size(); ++i) {
        if (!is_same(want.states[rank][i], have.states[rank][i], tolerance))
          text += " rank " + std::to_string(rank) + " state " + std::to_string(i);
      }
    }
    EXPECT_EQ(want.skipped, have.skipped);
    EXPECT_EQ(text, "") << describe(program.options) << " on " << program.ranks << " ranks";
  }

  static bool is_same(const at::Tensor& want, const at::Tensor& have, double tolerance) {
    if (tolerance == 0) return at::equal(want, have);
    return at::allclose(want.to(at::kDouble), have.to(at::kDouble), tolerance, tolerance * 1e-2);
  }

  const uint64_t seed_;
  LazyDevice device_;
};

TEST_F(ShardedOnDevices, LeaveTheCpusBitsWithEveryPreset) {
  for (const std::string& name : preset_names()) {
    for (const int ranks : {1, 2, 3}) {
      Program program{.ranks = ranks, .options = preset(name, 1e-2), .sharded = {}};
      program.sharded.bucket_bytes = 8 << 10;
      expect_the_cpus_run(program);
      if (HasFailure()) return;
    }
  }
}

TEST_F(ShardedOnDevices, SkipWhatAnyRankMustSkip) {
  for (const std::string name : {"recommended", "compact", "lean"}) {
    Program program{.ranks = 3, .options = preset(name, 1e-2), .sharded = {}, .steps = 9};
    program.options.bias_correction = true;  // t is seen
    program.sharded.bucket_bytes = 8 << 10;
    program.is_spoilt = [](int rank, int step) {
      return (step == 1 && rank == 2) || step == 4 || (step == 5 && rank == 0) || step == 8;
    };
    expect_the_cpus_run(program);
  }
}

TEST_F(ShardedOnDevices, ParametersWithoutAGradientKeepTheirCount) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 8};
  program.sharded.bucket_bytes = 8 << 10;
  program.is_used = [](int step, size_t p) {
    return p == 2 || (step + static_cast<int>(p)) % 3 != 0;
  };
  program.is_spoilt = [](int rank, int step) { return rank == 1 && (step == 2 || step == 5); };
  expect_the_cpus_run(program);
}

TEST_F(ShardedOnDevices, BucketsThatBecameDirtyAreSentAgain) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .passes = 2};
  program.sharded.bucket_bytes = 8 << 10;
  expect_the_cpus_run(program);
}

// What the device has found of gradients that do not count must not count either.
TEST_F(ShardedOnDevices, ANanThatWasThrownAwaySkipsNothing) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .passes = 2};
  program.sharded.bucket_bytes = 8 << 10;
  program.is_spoilt = [](int rank, int step) {
    return rank == 1 && step == 1;
  };  // in the first pass
  program.after_first_pass = [](ShardedFusedbun& optimizer) { optimizer.zero_grad(); };
  expect_the_cpus_run(program);
}

// The second pass reaches the last bucket alone: what stands in the others counts as it did.
TEST_F(ShardedOnDevices, ANanInABucketThatIsNotSentAgainSkipsTheStep) {
  for (const int ranks : {1, 2}) {
    Program program{
        .ranks = ranks, .options = preset("recommended", 1e-2), .sharded = {}, .passes = 2};
    program.sharded.bucket_bytes = 8 << 10;
    program.is_in_pass = [](int pass, size_t p) { return pass == 0 || p == 8; };
    program.is_spoilt = [](int rank, int step) { return rank == 0 && step == 1; };
    expect_the_cpus_run(program);
  }
}

TEST_F(ShardedOnDevices, ARefusedStepLeavesNothingBehind) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 5};
  program.sharded.bucket_bytes = 8 << 10;
  program.sharded.notice = [](std::string_view sentence) {
    EXPECT_EQ(sentence.find("travel twice"), std::string_view::npos) << sentence;
  };
  program.after_step = [](ShardedFusedbun& optimizer, Program::Parameters& parameters, int rank,
                          int step) {
    if (step != 1) return;
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (const auto& item : parameters)
      loss = loss + (item.value() * std::numeric_limits<double>::quiet_NaN()).sum().to(at::kDouble);
    loss.backward();
    EXPECT_THROW(optimizer.step(StepOptions{.loss_scale = rank == 0 ? 1.0 : 2.0}), ConfigError);
    optimizer.zero_grad();
  };
  expect_the_cpus_run(program);
}

TEST_F(ShardedOnDevices, ALateGroupChangesNothingOfTheOthers) {
  for (const std::string name : {"compact", "recommended"}) {
    Program program{.ranks = 2, .options = preset(name, 1e-2), .sharded = {}, .steps = 6};
    program.sharded.bucket_bytes = 8 << 10;
    program.is_spoilt = [](int rank, int step) { return rank == 0 && step == 2; };
    program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int, int step) {
      if (step != 2) return;
      at::Tensor late = at::ones({12, 20}).requires_grad_();
      late.mutable_grad() = at::ones({12, 20});
      torch::optim::OptimizerParamGroup group({late});
      group.set_options(std::make_unique<FusedbunOptions>(program.options));
      optimizer.add_param_group(group);
    };
    expect_the_cpus_run(program);
  }
}

// The host decides from then on, and has heard of what the device decided before. No columns: LibTorch's operations on stand-in tensors
// do not wait for the lazy device, which zeroes their sums.
TEST_F(ShardedOnDevices, ALateGroupForTheReferenceKeepsWhatTheDeviceDecided) {
  Program program{.ranks = 1, .options = preset("elementwise", 1e-2), .sharded = {}, .steps = 6};
  program.options.bias_correction = true;  // t is seen
  program.is_spoilt = [](int, int step) { return step == 1 || step == 2; };
  program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int, int step) {
    if (step != 2) return;
    at::Tensor late = at::ones({12, 20}).requires_grad_();
    late.mutable_grad() = at::ones({12, 20});
    Options options = preset("fusion", 1e-2);
    options.prepare_hessian = true;
    torch::optim::OptimizerParamGroup group({late});
    group.set_options(std::make_unique<FusedbunOptions>(options));
    optimizer.add_param_group(group);
  };
  expect_the_cpus_run(program, 1e-4);  // the reference rounds in another order
}

// The first values come back, so their squares are what they were when the optimizer was made.
TEST_F(ShardedOnDevices, ParametersThatTheProgramWritesAreFollowed) {
  Program program{.ranks = 2, .options = preset("compact", 1e-1), .sharded = {}, .steps = 6};
  program.sharded.bucket_bytes = 8 << 10;
  program.after_step = [&](ShardedFusedbun&, Program::Parameters& parameters, int, int step) {
    if (step != 1 && step != 3) return;
    at::NoGradGuard no_grad;
    for (size_t p = 0; p < program.kinds.size(); ++p) {
      at::Tensor& parameter = parameters["p" + std::to_string(p)];
      const at::Tensor first = program.kinds[p].made_of(drawn(program.kinds[p], seed_ % 1000 + p));
      step == 1 ? parameter.copy_(first) : parameter.mul_(0.5);
    }
  };
  expect_the_cpus_run(program);
}

// The archive is saved while the device has unfinished steps, loaded at once, and loaded again after later steps.
TEST_F(ShardedOnDevices, AnArchiveHasTheStepsThatWereDone) {
  Program program{.ranks = 2, .options = preset("compact", 1e-2), .sharded = {}, .steps = 7};
  program.options.bias_correction = true;  // t is seen
  program.sharded.bucket_bytes = 8 << 10;
  program.is_spoilt = [](int rank, int step) { return rank == 0 && (step == 2 || step == 4); };
  std::vector<std::string> kept(2);  // [rank]
  program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int rank, int step) {
    if (step != 2 && step != 4) return;
    if (step == 2) {
      torch::serialize::OutputArchive saved;
      optimizer.save(saved);
      std::stringstream stream;
      saved.save_to(stream);
      kept[static_cast<size_t>(rank)] = stream.str();
    }
    std::stringstream stream(kept[static_cast<size_t>(rank)]);
    torch::serialize::InputArchive read;
    read.load_from(stream);
    optimizer.load(read);
  };
  expect_the_cpus_run(program);
}

// The scale falls with the step after an overflow, though the host hears of it two steps later.
TEST_F(ShardedOnDevices, ScaleTheLossAsTheStepBeforeDecided) {
  for (const double max_norm : {0.0, 3.0}) {
    Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 9};
    program.sharded.bucket_bytes = 8 << 10;
    program.sharded.max_grad_norm = max_norm;
    program.sharded.dynamic_loss_scale = {.initial = 4096, .growth = 4, .growth_interval = 2};
    program.is_spoilt = [](int rank, int step) {
      return (step == 2 && rank == 1) || (step == 3 && rank == 0) || step == 7;
    };
    std::vector<std::vector<double>> used;  // [rank][step]
    std::vector<LossScaleState> left;
    program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int rank, int step) {
      if (step + 1 == program.steps) optimizer.settle();
      for (const ShardedFusedbun::StepOutcome& outcome : optimizer.take_outcomes())
        used[static_cast<size_t>(rank)].push_back(outcome.loss_scale);
      if (step + 1 == program.steps) left[static_cast<size_t>(rank)] = optimizer.loss_scale();
    };
    const std::vector<double> expected = {4096, 4096, 16384, 8192, 4096, 4096, 16384, 16384, 8192};
    for (const bool on_devices : {false, true}) {
      used.assign(2, {});
      left.assign(2, {});
      if (on_devices) {
        this->on_devices(program);
      } else {
        Job(program, nullptr).run();
      }
      for (size_t rank = 0; rank < 2; ++rank) {
        EXPECT_EQ(used[rank], expected) << (on_devices ? "on devices" : "on CPUs");
        EXPECT_EQ(left[rank], (LossScaleState{.scale = 8192, .good_steps = 1}));
      }
    }
    used.assign(2, {});
    expect_the_cpus_run(program, max_norm > 0 ? 1e-5 : 0);  // norms are added up in another order
  }
}

// The state is taken while the device has unfinished steps, and restored after later ones.
TEST_F(ShardedOnDevices, AStateToSaveHasTheStepsThatWereDone) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 6};
  program.options.bias_correction = true;  // t is seen
  program.sharded.bucket_bytes = 8 << 10;
  program.sharded.dynamic_loss_scale = {.initial = 1024, .growth_interval = 100};
  program.is_spoilt = [](int rank, int step) { return rank == 0 && (step == 2 || step == 3); };
  std::vector<ShardedFusedbun::ReplicatedState> kept(2);  // [rank]
  std::vector<std::vector<int64_t>> saved(2);
  program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int rank, int step) {
    static const auto nothing = [](const ShardedFusedbun::OwnedRows&) {};
    if (step == 4) optimizer.restore(kept[static_cast<size_t>(rank)], nothing);
    if (step != 2 && step != 5) return;
    const ShardedFusedbun::ReplicatedState state = optimizer.state_to_save();
    kept[static_cast<size_t>(rank)] = state;
    std::vector<int64_t>& known = saved[static_cast<size_t>(rank)];
    known.push_back(state.skipped_steps);
    known.insert(known.end(), state.step_counts.begin(), state.step_counts.end());
    known.push_back(static_cast<int64_t>(state.loss_scale->scale));
    optimizer.restore(state, nothing);
  };
  expect_the_cpus_run(program);
  const std::vector<std::vector<int64_t>> both = saved;
  saved.assign(2, {});
  Program on_cpus = program;
  Job(on_cpus, nullptr).run();
  for (size_t rank = 0; rank < 2; ++rank) {
    std::vector<int64_t> twice = saved[rank];
    twice.insert(twice.end(), saved[rank].begin(), saved[rank].end());
    EXPECT_EQ(both[rank], twice) << "CPUs', then devices'";
  }
}

TEST_F(ShardedOnDevices, WhoReadsRowsFindsThemStepped) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}};
  program.sharded.bucket_bytes = 8 << 10;
  std::vector<std::vector<double>> sums(2);  // [rank]
  program.right_after_step = [&](ShardedFusedbun& optimizer, int rank) {
    for (const ShardedFusedbun::OwnedRows& rows : optimizer.owned_rows())
      sums[static_cast<size_t>(rank)].push_back(
          rows.values.detach().to(at::kDouble).sum().item<double>());
  };
  Job(program, nullptr).run();
  const std::vector<std::vector<double>> expected = std::exchange(sums, {{}, {}});
  on_devices(program);
  EXPECT_EQ(sums, expected);
}

// The rows that a restore reads arrive on all ranks, and a backward pass that had begun, with a NaN, counts no more.
TEST_F(ShardedOnDevices, ARestoreBringsRowsAndDropsABackwardThatHadBegun) {
  for (const int ranks : {1, 2, 3}) {
    Program program{
        .ranks = ranks, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 5};
    program.sharded.bucket_bytes = 8 << 10;
    program.sharded.notice = [](std::string_view sentence) {
      EXPECT_EQ(sentence.find("travel twice"), std::string_view::npos) << sentence;
    };
    std::vector<ShardedFusedbun::ReplicatedState> kept(static_cast<size_t>(ranks));
    program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters& parameters, int rank,
                             int step) {
      ShardedFusedbun::ReplicatedState& state = kept[static_cast<size_t>(rank)];
      if (step == 1) state = optimizer.state_to_save();
      if (step != 1 && step != 3) return;  // at 3 the device is still at it
      at::Tensor loss = at::zeros({}, at::kDouble);
      for (const auto& item : parameters)
        loss =
            loss + (item.value() * std::numeric_limits<double>::quiet_NaN()).sum().to(at::kDouble);
      loss.backward();
      optimizer.restore(
          state, [](const ShardedFusedbun::OwnedRows& rows) { rows.values.detach().mul_(0.5); });
      optimizer.zero_grad();
    };
    expect_the_cpus_run(program);
  }
}

TEST_F(ShardedOnDevices, SaveAndLoadTheLossScale) {
  Program program{.ranks = 2, .options = preset("compact", 1e-2), .sharded = {}, .steps = 7};
  program.sharded.bucket_bytes = 8 << 10;
  program.sharded.dynamic_loss_scale = {.initial = 1024, .growth_interval = 2};
  program.is_spoilt = [](int rank, int step) { return rank == 1 && (step == 2 || step == 4); };
  program.after_step = [](ShardedFusedbun& optimizer, Program::Parameters&, int, int step) {
    if (step != 2 && step != 3) return;
    torch::serialize::OutputArchive saved;
    optimizer.save(saved);
    EXPECT_EQ(
        optimizer.loss_scale(),
        (LossScaleState{.scale = 1024, .good_steps = step - 2, .skipped_in_a_row = 3 - step}));
    std::stringstream stream;
    saved.save_to(stream);
    torch::serialize::InputArchive read;
    read.load_from(stream);
    optimizer.load(read);
  };
  expect_the_cpus_run(program);
}

TEST_F(ShardedOnDevices, TellEachOutcomeOnceAndLate) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}, .steps = 7};
  program.sharded.bucket_bytes = 8 << 10;
  program.is_spoilt = [](int rank, int step) { return rank == 0 && (step == 2 || step == 3); };
  std::vector<std::vector<int64_t>> told(2);  // [rank] steps that were skipped
  program.after_step = [&](ShardedFusedbun& optimizer, Program::Parameters&, int rank, int step) {
    const auto& report = optimizer.report();
    EXPECT_EQ(report.outcome_step,
              step < optimizer.outcome_delay() ? -1 : step - optimizer.outcome_delay());
    EXPECT_EQ(report.skipped, report.outcome_step == 2 || report.outcome_step == 3);
    if (step == 6) optimizer.settle();
    for (const ShardedFusedbun::StepOutcome& outcome : optimizer.take_outcomes())
      if (outcome.skipped) told[rank].push_back(outcome.job_step);
  };
  on_devices(program);
  EXPECT_EQ(told[0], (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(told[1], told[0]);
}

TEST_F(ShardedOnDevices, StepInBackward) {
  Program program{.ranks = 2, .options = preset("recommended", 1e-2), .sharded = {}};
  program.options.nonfinite = Nonfinite::propagate;
  program.sharded.step_in_backward = true;
  program.sharded.bucket_bytes = 8 << 10;
  expect_the_cpus_run(program);
  program.sharded.release = GradientRelease::in_hook;
  expect_the_cpus_run(program);
}

// A model's forward pass ran on two streams, so its backward pass does: one gradient of a bucket is still to be computed on the other stream
// when the bucket starts.
TEST_F(ShardedOnDevices, AGradientMayComeFromAnotherStream) {
  for (const int ranks : {1, 2}) {
    std::vector<at::Tensor> left[2];  // [on devices] parameters of rank 0
    for (const bool on_devices : {false, true}) {
      std::optional<StandInDevice> stand_in;
      if (on_devices) stand_in.emplace(device_);
      testing::run_ranks(ranks, [&](comm::Communicator& host) {
        std::unique_ptr<comm::Communicator> data;
        if (on_devices)
          data = comm::connect_nccl({.rank = host.rank(), .size = host.size()}, host,
                                    comm::lazy_nccl());
        lazy_cuda::Stream* const first = lazy_cuda::current_stream();
        lazy_cuda::Stream* const other = lazy_cuda::make_stream();
        Program::Parameters parameters;
        for (const char* name : {"first", "other"})
          parameters.insert(name, at::ones({12, 20}).requires_grad_());
        const void* computed_late = nullptr;
        parameters["other"].register_hook([&](const at::Tensor& gradient) {
          if (!on_devices) return gradient;
          const at::Tensor late = at::full_like(gradient, 1e9);
          computed_late = late.data_ptr();
          lazy_cuda::set_current_stream(other);
          lazy_cuda::give(other, [to = late.data_ptr(), from = gradient.clone()] {
            std::memcpy(to, from.const_data_ptr(), from.nbytes());
          });
          return late;
        });
        parameters["first"].register_hook(
            [&](const at::Tensor&) { lazy_cuda::set_current_stream(first); });
        ShardedFusedbun optimizer({.data = data ? data.get() : &host, .host = &host}, parameters,
                                  FusedbunOptions::recommended(1e-2), {.host_window = false});
        for (int step = 0; step < 3; ++step) {
          const auto loss_of = [&](const char* name) {
            return (parameters[name] *
                    drawn({{12, 20}}, static_cast<uint64_t>(step)).to(at::kFloat))
                .sum();
          };
          const at::Tensor loss = loss_of("first");
          (loss + loss_of("other")).backward();  // what was computed last goes first
          if (on_devices) {
            ASSERT_EQ(parameters["other"].grad().data_ptr(), computed_late);
          }
          optimizer.step();
          if (on_devices) device_.catch_up();
        }
        optimizer.finish();
        if (host.rank() != 0) return;
        for (const auto& item : parameters)
          left[on_devices].push_back(item.value().detach().clone());
      });
    }
    for (size_t p = 0; p < 2; ++p) EXPECT_TRUE(at::equal(left[0][p], left[1][p])) << ranks << p;
  }
}

// More buckets than slots of the ring, whatever the number of ranks, and a preset whose second part of the update reads sums once more.
TEST_F(ShardedOnDevices, ManyBucketsTakeTurnsInMemory) {
  for (const std::string name : {"recommended", "lean"}) {
    for (const int ranks : {1, 2, 3}) {
      for (const bool in_backward : {false, true}) {
        Program program{.ranks = ranks, .options = preset(name, 1e-2), .sharded = {}, .steps = 3};
        program.kinds.assign(11, {{24, 20}});
        program.kinds.push_back({{24, 20}, at::kBFloat16});
        program.options.nonfinite = Nonfinite::propagate;
        program.sharded.step_in_backward = in_backward;
        program.sharded.release = GradientRelease::in_hook;
        program.sharded.bucket_bytes = 2 << 10;
        expect_the_cpus_run(program);
      }
    }
  }
}

TEST_F(ShardedOnDevices, KeepWhatBfloat16DoesNotHold) {
  for (const std::string name : {"recommended", "compact"}) {
    for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
      Program program{.ranks = 2, .options = preset(name, 1e-3), .sharded = {}, .steps = 6};
      program.kinds = {{{33, 48}, at::kBFloat16}, {{7}, at::kBFloat16}, {{64, 40}, at::kBFloat16}};
      program.options.low_precision = kept;
      program.sharded.bucket_bytes = 4 << 10;
      program.is_spoilt = [](int rank, int step) { return rank == 1 && step == 2; };
      expect_the_cpus_run(program);
    }
  }
}

// As below.
TEST_F(ShardedOnDevices, ClipByTheNormOfTheStepBefore) {
  for (const int ranks : {1, 3}) {
    Program program{.ranks = ranks, .options = preset("lean", 1e-1), .sharded = {}, .steps = 5};
    program.kinds = {{{33, 48}}, {{7}}, {{64, 40}}, {{30, 20}}, {{30, 20}}};
    program.options.nonfinite = Nonfinite::propagate;
    program.sharded.step_in_backward = program.sharded.clip_by_previous_norm = true;
    program.sharded.max_grad_norm = 0.5;
    program.sharded.bucket_bytes = 4 << 10;
    expect_the_cpus_run(program, 1e-5);
  }
}

// The norm's sum has another order than the CPU's, so the last bit of the clip factor may differ.
TEST_F(ShardedOnDevices, ClipByTheNormOfAllRanks) {
  for (const double limit : {0.5, 1e9}) {
    Program program{.ranks = 3, .options = preset("lean", 1e-1), .sharded = {}};
    program.kinds = {{{33, 48}}, {{7}}, {{64, 40}}};
    program.sharded.bucket_bytes = 8 << 10;
    program.sharded.max_grad_norm = limit;
    program.is_spoilt = [](int rank, int step) { return rank == 1 && step == 2; };
    expect_the_cpus_run(program, 1e-5);
  }
}

// Bytes that threads which count here have allocated for tensors and not freed. One rank's work may be done, and its tensors freed, by
// another's thread.
class HeldBytes final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    bytes_ += bytes;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t bytes() const { return bytes_; }

 private:
  std::atomic<int64_t> bytes_ = 0;
};

// Beside parameters and state: nothing on one rank, which reads gradients where they are; on several the reduced portions and a few buckets,
// and under step_in_backward not even all portions.
TEST_F(ShardedOnDevices, HoldAFewBucketsAndNoCopyOfAllGradients) {
  constexpr int kCount = 32;
  constexpr int64_t kElements = 128 * 256, kBytes = kElements * 4;
  for (const int ranks : {1, 2}) {
    for (const bool in_backward : {false, true}) {
      const StandInDevice stand_in(device_);
      const auto held = std::make_shared<HeldBytes>();
      testing::run_ranks(ranks, [&](comm::Communicator& host) {
        const auto data =
            comm::connect_nccl({.rank = host.rank(), .size = host.size()}, host, comm::lazy_nccl());
        Program::Parameters parameters;
        for (int p = 0; p < kCount; ++p)
          parameters.insert("p" + std::to_string(p), at::randn({128, 256}).requires_grad_());
        host.barrier().wait();
        const c10::DebugInfoGuard counts(c10::DebugInfoKind::PROFILER_STATE, held);
        ShardedFusedbun optimizer({.data = data.get(), .host = &host}, parameters,
                                  FusedbunOptions::compact(1e-2).nonfinite(Nonfinite::propagate),
                                  {.bucket_bytes = 2 * kBytes,
                                   .step_in_backward = in_backward,
                                   .release = GradientRelease::in_hook});
        for (int step = 0; step < 3; ++step) {
          for (const auto& item : parameters) (item.value() * 2.0).sum().backward();
          optimizer.step();
          device_.catch_up();
        }
        const int64_t sums = ranks == 1 || in_backward ? 0 : kCount * kBytes / ranks;
        const int64_t buckets = ranks == 1 ? 0 : 3 * 2 * kBytes + (in_backward ? 3 * kBytes : 0);
        const int64_t law = ranks * (optimizer.state_bytes() + sums + buckets);
        host.barrier().wait();
        // Tables, columns and scratch memory: no more than the gradients of a bucket.
        EXPECT_LE(held->bytes(), law + ranks * 2 * kBytes) << ranks << in_backward;
        EXPECT_GE(held->bytes(), law) << ranks << in_backward;
        host.barrier().wait();
        optimizer.finish();
      });
    }
  }
}

// Options that no kernel takes.
TEST_F(ShardedOnDevices, TheReferenceStepsTheRest) {
  Program program{.ranks = 1, .options = preset("fusion", 1e-2), .sharded = {}};
  program.kinds = {{{33, 48}}, {{7}}, {{64, 40}}};
  program.options.prepare_hessian = true;
  program.is_spoilt = [](int, int step) { return step == 1; };
  expect_the_cpus_run(program, 1e-5);
  program.passes = 2;  // the first of which, with its NaN, is thrown away
  program.after_first_pass = [](ShardedFusedbun& optimizer) { optimizer.zero_grad(); };
  expect_the_cpus_run(program, 1e-5);
  program.after_first_pass = [](ShardedFusedbun&) {};  // and one whose NaN counts
  program.sharded.bucket_bytes = 1 << 10;
  program.is_in_pass = [](int pass, size_t p) { return pass == 0 || p == 0; };
  expect_the_cpus_run(program, 1e-5);
}

TEST_F(ShardedOnDevices, GiveTheDeviceAsMuchForAnyNumberOfParameters) {
  const std::string host_wait = "host wait";
  std::map<std::string, int> of_few;
  for (const int count : {4, 32}) {
    Program program{.ranks = 1, .options = preset("compact", 1e-2), .sharded = {}};
    program.kinds.assign(static_cast<size_t>(count), {{8, 12}});
    program.sharded.max_grad_norm = 1;
    program.steps = 3;
    on_devices(program);
    device_.clear_calls();
    program.steps = 5;
    on_devices(program);
    const std::map<std::string, int> of_five = device_.calls();
    device_.clear_calls();
    program.steps = 3;
    on_devices(program);
    std::map<std::string, int> of_two = of_five;
    for (const auto& [call, times] : device_.calls()) of_two[call] -= times;
    // At the start and the end of a run the host may find the device done or wait for it: one more or less. A wait in
    // every step would be two.
    EXPECT_LT(std::abs(of_two[host_wait]), 2);
    of_two.erase(host_wait);
    if (count == 4) of_few = of_two;
    EXPECT_EQ(of_two, of_few);
    for (const auto& [call, times] : of_two)
      std::printf("%s %g per step; ", call.c_str(), times / 2.0);
    std::printf("\n");
  }
}

}  // namespace
}  // namespace fusedbun

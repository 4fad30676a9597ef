// Fusedbun where its parameters are on a GPU, by a lazy double of one: the same bits as on the CPU, with a number of launches that does not
// depend on the number of parameters.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/serialize.h>

#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <sstream>

#include "cuda_on_cpu.h"
#include "fusedbun/core/fusedbun.h"
#include "fusedbun/tests/core/random_segment.h"
#include "lazy_device.h"
#include "parameter_kind.h"

namespace fusedbun {
namespace {

// Matrices, vectors, scalars, a stack, one that no row of threads divides, one that is not contiguous, one of 16 bits.
const ParameterKind kKinds[] = {{{33, 48}},
                                {{7}},
                                {{}},
                                {{3, 20, 24}},
                                {{5, 1037}},
                                {{40, 12}, at::kFloat, true},
                                {{64, 32}, at::kBFloat16},
                                {{9, 11}, at::kDouble},
                                {{2050}}};

at::Tensor make(const ParameterKind& kind) {
  return kind.made_of(at::randn(kind.shape, at::kDouble));
}

// Two optimizers with equal parameters: one steps on the CPU, one on the device.
struct Twins {
  std::vector<at::Tensor> on_cpu, on_device;
  std::unique_ptr<Fusedbun> cpu, device;

  explicit Twins(const Options& options, const std::vector<ParameterKind>& kinds) {
    for (const ParameterKind& kind : kinds) {
      on_cpu.push_back(make(kind).requires_grad_());
      on_device.push_back(on_cpu.back().detach().clone().requires_grad_());
    }
    cpu = std::make_unique<Fusedbun>(on_cpu, FusedbunOptions(options));
    device = std::make_unique<Fusedbun>(on_device, FusedbunOptions(options));
  }

  void set_gradients(double spoil = 0) {
    for (size_t p = 0; p < on_cpu.size(); ++p) {
      at::Tensor g = at::randn(on_cpu[p].sizes(), at::kDouble).to(on_cpu[p].scalar_type());
      if (p == 0 && spoil != 0) g.view(-1)[3] = spoil;
      on_cpu[p].mutable_grad() = g;
      on_device[p].mutable_grad() = g.clone();
    }
  }

  std::string difference() {
    std::string text;
    for (size_t p = 0; p < on_cpu.size(); ++p) {
      if (!at::equal(on_cpu[p], on_device[p])) text += " parameter " + std::to_string(p);
      const FusedbunParamState *want = state(*cpu, on_cpu[p]), *have = state(*device, on_device[p]);
      if ((want == nullptr) != (have == nullptr)) text += " state " + std::to_string(p);
      if (want == nullptr || have == nullptr) continue;
      if (want->step != have->step) {
        text += " t " + std::to_string(p) + " is " + std::to_string(have->step) + ", not " +
                std::to_string(want->step);
      }
      SegmentState a = want->segment, b = have->segment;
      std::vector<at::Tensor> expected;
      visit_tensors(a, [&](const char*, at::Tensor& tensor) { expected.push_back(tensor); });
      size_t index = 0;
      visit_tensors(b, [&](const char* name, at::Tensor& tensor) {
        const at::Tensor& other = expected[index++];
        const bool equal =
            tensor.defined() == other.defined() && (!tensor.defined() || at::equal(tensor, other));
        if (!equal) text += std::string(" ") + name + " " + std::to_string(p);
      });
    }
    return text;
  }

  static FusedbunParamState* state(Fusedbun& optimizer, const at::Tensor& parameter) {
    const auto entry = optimizer.state().find(parameter.unsafeGetTensorImpl());
    return entry == optimizer.state().end() ? nullptr
                                            : static_cast<FusedbunParamState*>(entry->second.get());
  }
};

class FusedbunOnADevice : public ::testing::Test {
 protected:
  FusedbunOnADevice() {
    const uint64_t seed = test_seed();
    at::manual_seed(seed);
    lazy_cuda::set_eagerness(seed, static_cast<int>(seed % 3));
    cuda_on_cpu_order(seed);
  }
  static void cuda_on_cpu_order(uint64_t seed) { cuda_on_cpu::set_order(seed); }

  // One step of both; on the device only what the next operation of LibTorch needs.
  void step(Twins& twins) {
    twins.cpu->step();
    const StandInDevice stand_in(device_);
    twins.device->step();
    device_.catch_up();
  }
  void settle(Twins& twins) {
    const StandInDevice stand_in(device_);
    EXPECT_EQ(twins.device->skipped_steps(), twins.cpu->skipped_steps());
  }

  LazyDevice device_;
};

std::vector<ParameterKind> all_kinds() {
  return {std::begin(kKinds), std::end(kKinds)};
}

TEST_F(FusedbunOnADevice, LeavesTheCpusBitsWithEveryPreset) {
  for (const std::string& name : preset_names()) {
    for (const bool switched : {false, true}) {
      Options options = preset(name, 1e-2);
      if (switched) {
        options.centralize = !options.centralize;
        options.matrix_view = MatrixView::last_two;
        if (options.momentum_beta > 0) options.momentum_dtype = MomentumDtype::bf16;
      }
      Twins twins(options, all_kinds());
      for (int t = 1; t <= 4; ++t) {
        twins.set_gradients();
        step(twins);
        ASSERT_EQ(twins.difference(), "") << describe(options) << " in step " << t;
      }
    }
  }
}

TEST_F(FusedbunOnADevice, KeepsWhatBfloat16DoesNotHold) {
  // One that threads move four elements of at once, one that they do not, one whose rows are longer than a block of columns.
  const std::vector<ParameterKind> kinds = {
      {{64, 32}, at::kBFloat16}, {{7, 33}, at::kBFloat16}, {{3, 1300}, at::kBFloat16}};
  for (const std::string& name : preset_names()) {
    for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
      Options options = preset(name, 1e-3);
      options.low_precision = kept;
      Twins twins(options, kinds);
      for (int t = 1; t <= 3; ++t) {
        twins.set_gradients();
        step(twins);
        ASSERT_EQ(twins.difference(), "") << describe(options) << " in step " << t;
      }
    }
  }
}

TEST_F(FusedbunOnADevice, SkipsWhatTheCpuSkips) {
  for (const std::string name : {"recommended", "compact", "sm3", "lean", "elementwise"}) {
    Options options = preset(name, 1e-2);
    options.bias_correction = true;                    // t is seen
    options.low_precision = LowPrecision::stochastic;  // here too
    Twins twins(options, all_kinds());
    for (int t = 0; t < 10; ++t) {
      const bool spoilt = t == 0 || t == 3 || t == 4 || t == 5 || t == 8;
      // 1e30 is a number; its square is not one in float32.
      twins.set_gradients(!spoilt ? 0 : t == 3 ? 1e30 : std::numeric_limits<double>::quiet_NaN());
      step(twins);
      if (t == 6) settle(twins);
    }
    settle(twins);
    EXPECT_EQ(twins.cpu->skipped_steps(), 5);
    EXPECT_EQ(twins.difference(), "") << name;
  }
}

TEST_F(FusedbunOnADevice, PropagatesWhereItIsAskedTo) {
  Options options = preset("recommended", 1e-2);
  options.nonfinite = Nonfinite::propagate;
  Twins twins(options, {{{33, 48}}});
  twins.set_gradients(std::numeric_limits<double>::infinity());
  step(twins);
  EXPECT_TRUE(twins.on_device[0].isnan().any().item<bool>());
  EXPECT_TRUE(at::equal(twins.on_device[0].isnan(), twins.on_cpu[0].isnan()));
  settle(twins);
}

// As on the CPU, a NaN counts for the whole step only where its own group skips.
TEST_F(FusedbunOnADevice, AGroupThatPropagatesSkipsNoStepOfOthers) {
  Options skips = preset("recommended", 1e-2), propagates = skips;
  propagates.nonfinite = Nonfinite::propagate;
  for (const bool spoilt_group_skips : {false, true}) {
    Twins twins(spoilt_group_skips ? skips : propagates, {{{9, 12}}});
    for (std::vector<at::Tensor>* side : {&twins.on_cpu, &twins.on_device})
      side->push_back(at::ones({6, 4}).requires_grad_());
    const Options& other = spoilt_group_skips ? propagates : skips;
    for (const auto& [optimizer, parameters] : {std::pair(twins.cpu.get(), &twins.on_cpu),
                                                std::pair(twins.device.get(), &twins.on_device)}) {
      torch::optim::OptimizerParamGroup group({parameters->back()});
      group.set_options(std::make_unique<FusedbunOptions>(other));
      optimizer->add_param_group(group);
    }
    twins.set_gradients(std::numeric_limits<double>::quiet_NaN());
    step(twins);
    settle(twins);
    EXPECT_EQ(twins.cpu->skipped_steps(), spoilt_group_skips ? 1 : 0);
    EXPECT_TRUE(at::equal(twins.on_cpu[1], twins.on_device[1]));
    EXPECT_TRUE(at::equal(twins.on_cpu[0].isnan(), twins.on_device[0].isnan()));
  }
}

// Programs keep their optimizer in a container, or return it from a function.
TEST_F(FusedbunOnADevice, MovesWithItsSteps) {
  Twins twins(preset("compact", 1e-2), all_kinds());
  for (int t = 0; t < 4; ++t) {
    twins.set_gradients(t == 1 ? std::numeric_limits<double>::quiet_NaN() : 0);
    step(twins);
    twins.device = std::make_unique<Fusedbun>(std::move(*twins.device));
  }
  settle(twins);
  EXPECT_EQ(twins.difference(), "");
}

// state().clear() is how programs begin anew, also while the device has not told of all steps.
TEST_F(FusedbunOnADevice, AStateMayBeThrownAway) {
  Twins twins(preset("compact", 1e-2), all_kinds());
  for (int t = 0; t < 6; ++t) {
    twins.set_gradients(t % 2 == 1 ? std::numeric_limits<double>::quiet_NaN() : 0);
    step(twins);
    if (t == 1 || t == 2) {
      twins.cpu->state().clear();
      twins.device->state().clear();
    }
  }
  settle(twins);
  EXPECT_EQ(twins.difference(), "");
}

// A group that no kernel takes makes all parameters take the other way, and back: what was known of their values goes along.
TEST_F(FusedbunOnADevice, GoesFromTheDeviceToTheHostAndBack) {
  Twins twins(preset("compact", 1e-2), {{{33, 48}}, {{7}}});
  const auto steps = [&](bool on_device) {
    for (int t = 0; t < 2; ++t) {
      twins.set_gradients();
      twins.cpu->step();
      std::optional<StandInDevice> stand_in;
      if (on_device) stand_in.emplace(device_);
      twins.device->step();
      device_.catch_up();
    }
    EXPECT_EQ(twins.difference(), "") << (on_device ? "on the device" : "on the host");
  };
  for (const bool on_device : {true, false, true, false}) steps(on_device);
}

TEST_F(FusedbunOnADevice, MomentumThatTheProgramReplacesIsTheMomentum) {
  Twins twins(preset("recommended", 1e-2), {{{33, 48}}});
  for (int t = 0; t < 4; ++t) {
    if (t == 2) {
      for (FusedbunParamState* const state : {Twins::state(*twins.cpu, twins.on_cpu[0]),
                                              Twins::state(*twins.device, twins.on_device[0])})
        state->segment.momentum_buffer = at::zeros({33, 48});
    }
    twins.set_gradients();
    step(twins);
  }
  EXPECT_EQ(twins.difference(), "");
}

TEST_F(FusedbunOnADevice, CountsStepsOfEachParameter) {
  Options options = preset("recommended", 1e-2);
  Twins twins(options, all_kinds());
  for (int t = 0; t < 8; ++t) {
    // A skipped step of some parameters is followed by one of others.
    twins.set_gradients(t == 2 || t == 5 ? std::numeric_limits<double>::quiet_NaN() : 0);
    for (size_t p = 1; p < twins.on_cpu.size(); ++p) {
      if ((static_cast<size_t>(t) * 3 + p) % 4 != 0) continue;
      twins.on_cpu[p].mutable_grad().reset();
      twins.on_device[p].mutable_grad().reset();
    }
    step(twins);
  }
  settle(twins);
  EXPECT_EQ(twins.difference(), "");
}

// The device has done nothing of a step when the next ones come: it does what the host must know, and no more.
TEST_F(FusedbunOnADevice, CountsStepsThatTheHostHasNotHeardOf) {
  for (const std::string name : {"recommended", "sm3", "lean"}) {
    Options options = preset(name, 1e-2);
    options.bias_correction = true;  // t is seen
    options.low_precision = LowPrecision::stochastic;
    Twins twins(options, {{{33, 48}}, {{7}}, {{64, 32}, at::kBFloat16}});
    for (int t = 0; t < 12; ++t) {
      twins.set_gradients(t % 4 == 1 || t == 6 ? std::numeric_limits<double>::quiet_NaN() : 0);
      if (t % 2 == 0) {  // the skipped steps are followed by others of other parameters
        twins.on_cpu[2].mutable_grad().reset();
        twins.on_device[2].mutable_grad().reset();
      }
      twins.cpu->step();
      const StandInDevice stand_in(device_);
      twins.device->step();
      if (t == 9) {
        EXPECT_EQ(twins.device->skipped_steps(), twins.cpu->skipped_steps());
      }
    }
    device_.catch_up();
    settle(twins);
    EXPECT_EQ(twins.difference(), "") << name;
  }
}

// What the program does between two steps: writes, new memory, another type, live options, a new group.
TEST_F(FusedbunOnADevice, FollowsTheProgram) {
  for (const std::string name : {"recommended", "compact", "lean"}) {
    Twins twins(preset(name, 1e-2), all_kinds());
    const auto change = [&](const std::function<void(at::Tensor&)>& action) {
      at::NoGradGuard no_grad;
      for (at::Tensor& parameter : twins.on_cpu) action(parameter);
      for (at::Tensor& parameter : twins.on_device) action(parameter);
      for (int t = 0; t < 2; ++t) {
        twins.set_gradients();
        step(twins);
      }
      EXPECT_EQ(twins.difference(), "") << name;
    };
    change([](at::Tensor&) {});
    change([](at::Tensor& parameter) { parameter.mul_(0.5); });
    change([](at::Tensor& parameter) { parameter.set_data(parameter.detach() * 2); });
    change([](at::Tensor& parameter) {
      if (parameter.scalar_type() == at::kFloat)
        parameter.set_data(parameter.detach().to(at::kDouble));
    });
    for (Fusedbun* optimizer : {twins.cpu.get(), twins.device.get()}) {
      auto& options = static_cast<FusedbunOptions&>(optimizer->param_groups()[0].options());
      options.lr(3e-2).centralize(true).use_rms(!options.use_rms()).Lambda(0.5);
    }
    change([](at::Tensor&) {});
  }
}

TEST_F(FusedbunOnADevice, AStateThatIsSavedGoesOnAnywhere) {
  Twins twins(preset("compact", 1e-2), all_kinds());
  for (int t = 0; t < 3; ++t) {
    twins.set_gradients(t == 2 ? std::numeric_limits<double>::quiet_NaN() : 0);
    step(twins);
  }
  std::stringstream saved;
  {
    const StandInDevice stand_in(device_);
    torch::save(*twins.device, saved);
  }
  torch::load(*twins.cpu, saved);  // t of the device's is 2
  saved.seekg(0);
  torch::load(*twins.device, saved);
  for (int t = 0; t < 2; ++t) {
    twins.set_gradients();
    step(twins);
  }
  settle(twins);
  EXPECT_EQ(twins.difference(), "");
  EXPECT_EQ(Twins::state(*twins.device, twins.on_device[0])->step, 4);
}

TEST_F(FusedbunOnADevice, LaunchesAreAsManyForAnyNumberOfParametersAndNobodyWaits) {
  std::map<std::string, int> of_few;
  for (const int count : {3, 60}) {
    Twins twins(preset("compact", 1e-2),
                std::vector<ParameterKind>(static_cast<size_t>(count), {{4, 12}}));
    for (int t = 0; t < 3; ++t) {  // tables are built in the first
      twins.set_gradients();
      device_.clear_calls();
      step(twins);
    }
    const std::map<std::string, int> calls = device_.calls();
    if (count == 3) of_few = calls;
    EXPECT_EQ(calls, of_few);
    // Test, offer, decision, preparation, step with its sums, absorption.
    EXPECT_EQ(calls.at("run"), 6);
    // Rules and counts, factors, where the gradients are, for the test and for the step.
    EXPECT_EQ(calls.at("upload"), 4);
    EXPECT_EQ(calls.at("download"), 1);
    EXPECT_EQ(calls.count("host wait"), 0U);
    EXPECT_EQ(calls.count("copy"), 0U);
  }
}

}  // namespace
}  // namespace fusedbun

#include "fusedbun/launcher/bench/step_bench.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fusedbun.h"
#include "fusedbun/launcher/bench/memory_roofline.h"

namespace fusedbun::bench {
namespace {

using at::Tensor;

/// What one step is timed on. The values are the same for all steps, and so is the memory where types allow it:
/// what is in it does not change how long a step takes.
struct Arrays {
  std::vector<Tensor> parameters, gradients, averages, squares;
  int64_t count = 0;
  at::Device device = at::kCPU;
};

Arrays make_arrays(const BenchModel& model, at::Device device) {
  Arrays arrays;
  arrays.device = device;
  for (const auto& shape : shapes_of(model)) {
    arrays.parameters.push_back(at::randn(shape, device) * 0.02);
    arrays.gradients.push_back(at::randn(shape, device) * 1e-3);
    arrays.averages.push_back(at::zeros(shape, device));
    arrays.squares.push_back(at::zeros(shape, device));
    arrays.count += arrays.parameters.back().numel();
  }
  return arrays;
}

struct TimedStep {
  std::string name;   ///< preset, or who else
  std::string dtype;  ///< of parameters and momentum
  std::function<void()> step;
  std::string limit;  ///< name of the stream loop that bounds it
  int bytes = 0;      ///< per parameter, moved by that loop
};

std::vector<Tensor> cloned(const std::vector<Tensor>& values, at::ScalarType type) {
  std::vector<Tensor> clones;
  for (const Tensor& value : values)
    clones.push_back(value.to(type, /*non_blocking=*/false, /*copy=*/true).requires_grad_());
  return clones;
}

// The fused step's result against the reference's: two steps, as the first has no statistics. On every eighth
// parameter, because the reference is slow.
void check(const FusedbunOptions& options, const Arrays& arrays, at::ScalarType type) {
  std::vector<Tensor> some, gradients;
  for (size_t i = 0; i < arrays.parameters.size(); ++i) {
    if (i % 8 != 2 && i % 8 != 4) continue;
    some.push_back(arrays.parameters[i]);
    gradients.push_back(arrays.gradients[i].to(type));
  }
  std::vector<Tensor> fused = cloned(some, type), reference = cloned(some, type);
  Fusedbun one(fused, options), other(reference, options);
  for (size_t i = 0; i < some.size(); ++i) {
    fused[i].mutable_grad() = reference[i].mutable_grad() = gradients[i];
  }
  for (int step = 0; step < 2; ++step) {
    one.step();
    const ForceReference forced;
    other.step();
  }
  const double tolerance = type == at::kFloat ? 1e-4 : 1e-2;  // bfloat16 keeps 8 bits
  for (size_t i = 0; i < some.size(); ++i) {
    FUSEDBUN_ASSERT(fused[i].allclose(reference[i], tolerance, /*atol=*/1e-6),
                    "the fused step is wrong: not timed");
  }
}

TimedStep adamw(const Arrays& arrays) {
  std::vector<Tensor> steps;
  for (size_t i = 0; i < arrays.parameters.size(); ++i)
    steps.push_back(at::ones({}, arrays.device));
  return {"AdamW fused (LibTorch)", "f32",
          [=, parameters = arrays.parameters, averages = arrays.averages,
           squares = arrays.squares]() mutable {
            at::_fused_adamw_(parameters, arrays.gradients, averages, squares, {}, steps,
                              /*lr=*/1e-3, /*beta1=*/0.9, /*beta2=*/0.95, /*weight_decay=*/0.1,
                              /*eps=*/1e-8, /*amsgrad=*/false, /*maximize=*/false);
          },
          "limit of AdamW"};
}

struct Variant {
  const char* preset;
  at::ScalarType type = at::kFloat;
  bool bf16_momentum = false;
  LowPrecision low_precision = LowPrecision::master;
};

TimedStep fusedbun_step(const Variant& variant, const Arrays& arrays) {
  FusedbunOptions options = FusedbunOptions::of_preset(variant.preset, 1e-3);
  // The test of the gradient belongs to the hook of a sharded step, which is timed by `bench exchange`.
  options.use_rms(true).nonfinite(Nonfinite::propagate);
  if (variant.bf16_momentum) options.momentum_dtype(MomentumDtype::bf16);
  options.low_precision(variant.low_precision);
  check(options, arrays, variant.type);
  const bool plain = variant.type == at::kFloat;
  // Where the step depends on the parameters' RMS, another optimizer's writes would make it read them once more.
  const bool shares = plain && !options.values().scale_by_parameter_rms;
  const std::vector<Tensor> parameters =
      shares ? arrays.parameters : cloned(arrays.parameters, variant.type);
  auto optimizer = std::make_shared<Fusedbun>(parameters, options);
  std::vector<Tensor> gradients = arrays.gradients;
  if (!plain) {
    for (Tensor& gradient : gradients) gradient = gradient.to(variant.type);
  }
  const Options& values = options.values();
  const bool full = values.accumulator == Accumulator::full;
  std::string limit = "limit of the parameter";
  if (variant.low_precision == LowPrecision::stochastic) {
    limit = variant.bf16_momentum ? "limit in bf16, one state" : "limit of the bf16 parameter";
  } else if (!plain) {
    limit = "limit with a bf16 parameter";
  } else if (variant.bf16_momentum) {
    limit = "limit with bf16 momentum";
  } else if (values.momentum_beta > 0 && full) {
    limit = "limit of AdamW";
  } else if (values.momentum_beta > 0 || full) {
    limit = "limit with one state";
  }
  std::string dtype = plain ? "f32" : "bf16 with f32 master";
  if (variant.low_precision == LowPrecision::remainder) dtype = "bf16 with remainder";
  if (variant.low_precision == LowPrecision::stochastic) dtype = "bf16, stochastic rounding";
  if (variant.bf16_momentum) dtype += ", bf16 momentum";
  return {variant.preset, dtype,
          [=] {
            for (size_t i = 0; i < parameters.size(); ++i)
              parameters[i].mutable_grad() = gradients[i];
            optimizer->step();
          },
          limit};
}

/// A loop over the arrays that `pick` chooses for parameter i.
TimedStep limit(const std::string& name, const Arrays& arrays,
                const std::function<Streams(size_t)>& pick) {
  std::vector<Streams> streams;
  std::vector<int64_t> counts;
  for (size_t i = 0; i < arrays.parameters.size(); ++i) {
    streams.push_back(pick(i));
    counts.push_back(arrays.parameters[i].numel());
  }
  const auto run = [streams, counts] {
    constexpr int64_t kGrain = 1 << 16;
    for (size_t i = 0; i < streams.size(); ++i) {
      at::parallel_for(0, counts[i], kGrain, [&](int64_t begin, int64_t end) {
        pass_over(streams[i].from(begin), end - begin);
      });
    }
  };
  return {name, "f32", run, name, streams[0].bytes()};
}

std::vector<TimedStep> limits(const Arrays& a) {
  const auto f32 = [](const Tensor& tensor) { return tensor.data_ptr<float>(); };
  // bfloat16 arrays borrow the memory of `squares`: what is in it does not matter.
  const auto u16 = [&a](size_t i) { return static_cast<uint16_t*>(a.squares[i].data_ptr()); };
  return {
      limit("limit of the parameter", a,
            [&](size_t i) {
              return Streams{.parameter = f32(a.parameters[i]), .gradient = f32(a.gradients[i])};
            }),
      limit("limit with one state", a,
            [&](size_t i) {
              return Streams{.parameter = f32(a.parameters[i]),
                             .gradient = f32(a.gradients[i]),
                             .momentum = f32(a.averages[i])};
            }),
      limit("limit with bf16 momentum", a,
            [&](size_t i) {
              return Streams{.parameter = f32(a.parameters[i]),
                             .gradient = f32(a.gradients[i]),
                             .bf16_momentum = u16(i)};
            }),
      limit("limit with a bf16 parameter", a,
            [&](size_t i) {
              return Streams{.parameter = f32(a.parameters[i]),
                             .rounded = u16(i),
                             .bf16_gradient = static_cast<uint16_t*>(a.gradients[i].data_ptr()),
                             .momentum = f32(a.averages[i])};
            }),
      limit("limit in bf16, one state", a,
            [&](size_t i) {
              return Streams{.rounded = u16(i),
                             .bf16_gradient = static_cast<uint16_t*>(a.gradients[i].data_ptr()),
                             .bf16_momentum = static_cast<uint16_t*>(a.averages[i].data_ptr())};
            }),
      limit("limit of the bf16 parameter", a,
            [&](size_t i) {
              return Streams{.rounded = u16(i),
                             .bf16_gradient = static_cast<uint16_t*>(a.gradients[i].data_ptr())};
            }),
      limit("limit of AdamW", a, [&](size_t i) {
        return Streams{.parameter = f32(a.parameters[i]),
                       .gradient = f32(a.gradients[i]),
                       .momentum = f32(a.averages[i]),
                       .full = f32(a.squares[i])};
      })};
}

// A GPU's limits: copies within its memory that move as many bytes per parameter as the loops above.
std::vector<TimedStep> copy_limits(const Arrays& arrays) {
  const std::vector<std::pair<const char*, int>> bytes = {{"limit of the parameter", 12},
                                                          {"limit with one state", 20},
                                                          {"limit with bf16 momentum", 16},
                                                          {"limit with a bf16 parameter", 20},
                                                          {"limit in bf16, one state", 10},
                                                          {"limit of the bf16 parameter", 6},
                                                          {"limit of AdamW", 28}};
  // What is read and what is written are halves of all bytes; all copies take the same memory.
  const auto type = at::TensorOptions().dtype(at::kByte).device(arrays.device);
  const Tensor from = at::zeros({arrays.count * 14}, type), to = at::empty_like(from);
  std::vector<TimedStep> limits;
  for (const auto& [name, per_parameter] : bytes) {
    const int64_t half = arrays.count * per_parameter / 2;
    limits.push_back({name, "copy", [=] { to.narrow(0, 0, half).copy_(from.narrow(0, 0, half)); },
                      name, per_parameter});
  }
  return limits;
}

// Until the device has done it, too.
double seconds_of(const std::function<void()>& step, at::Device device) {
  const auto wait = [&] {
    if (!device.is_cpu()) at::detail::getCUDAHooks().deviceSynchronize(device.index());
  };
  wait();
  const auto start = std::chrono::steady_clock::now();
  step();
  wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// All optimizers, and the limits, each checked.
std::vector<TimedStep> checked_steps(const Arrays& arrays) {
  std::vector<TimedStep> steps = {adamw(arrays)};
  for (const char* name : {"recommended", "sm3", "compact", "lean", "elementwise"})
    steps.push_back(fusedbun_step({name}, arrays));
  steps.push_back(fusedbun_step({"recommended", at::kFloat, true}, arrays));
  steps.push_back(fusedbun_step({"recommended", at::kBFloat16}, arrays));
  steps.push_back(
      fusedbun_step({"recommended", at::kBFloat16, false, LowPrecision::remainder}, arrays));
  steps.push_back(
      fusedbun_step({"recommended", at::kBFloat16, true, LowPrecision::stochastic}, arrays));
  steps.push_back(
      fusedbun_step({"compact", at::kBFloat16, false, LowPrecision::stochastic}, arrays));
  for (TimedStep& bound : arrays.device.is_cpu() ? limits(arrays) : copy_limits(arrays))
    steps.push_back(std::move(bound));
  return steps;
}

// Seconds by [step][round]; the steps take turns.
std::vector<std::vector<double>> timed(const std::vector<TimedStep>& steps, int rounds,
                                       at::Device device) {
  std::vector<std::vector<double>> seconds(steps.size());
  for (int round = 0; round <= rounds; ++round) {
    std::cerr << "\r" << at::get_num_threads() << " thread(s), round " << round << " of " << rounds
              << std::flush;
    for (size_t c = 0; c < steps.size(); ++c) {
      const double took = seconds_of(steps[c].step, device);
      if (round > 0) seconds[c].push_back(took);  // the first one warms up
    }
  }
  std::cerr << '\n';
  return seconds;
}

}  // namespace

Json bench_step(const StepBenchOptions& options) {
  at::NoGradGuard no_grad;
  at::manual_seed(1);
  const at::Device device = options.use_gpu ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const Arrays arrays = make_arrays(options.model, device);
  std::cerr << options.model.name << ": " << arrays.count << " parameters; checking results\n";
  const std::vector<TimedStep> steps = checked_steps(arrays);
  std::map<std::string, size_t> index_of;
  for (size_t c = 0; c < steps.size(); ++c) index_of[steps[c].name] = c;

  Json report = empty_report("step");
  for (const int threads : options.threads) {
    at::set_num_threads(threads);
    const std::vector<std::vector<double>> seconds = timed(steps, options.rounds, device);
    for (size_t c = 0; c < steps.size(); ++c) {
      const size_t bound = index_of.at(steps[c].limit);
      std::vector<double> nanoseconds;
      for (const double s : seconds[c])
        nanoseconds.push_back(s * 1e9 / static_cast<double>(arrays.count));
      Json row{{"preset", steps[c].name},
               {"model", options.model.name},
               {"dtype", steps[c].dtype},
               {"device", device.str()},
               {"threads", threads}};
      put(row, "ns_per_param", spread_of(nanoseconds));
      put(row, "ratio_to_adamw_fused", spread_of(paired_ratios(seconds[c], seconds[0])));
      put(row, "ratio_to_limit", spread_of(paired_ratios(seconds[c], seconds[bound])));
      row["bytes_per_param_at_limit"] = steps[bound].bytes;
      report["rows"].push_back(std::move(row));
    }
  }
  return report;
}

}  // namespace fusedbun::bench

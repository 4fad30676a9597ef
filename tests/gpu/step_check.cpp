// The optimizer's step on a GPU: every golden case, and random segments against the CPU.
//
//   gpu_step_check golden      through the CUDA step where the options have one, and through the reference on the GPU
//   gpu_step_check segments    the CUDA step against the CPU's: the same bits
//   gpu_step_check small       the same on few and small matrices, for compute-sanitizer, under which a launch takes many times as long
//
// With `--rehearse` behind it the CPU stands in for the GPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string_view>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/tests/core/random_segment.h"
#include "fusedbun/tests/gpu/gpu_check.h"
#include "fusedbun/tests/support/golden_cases.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;
using golden::Case;
using golden::Precision;

at::Device gpu_device(at::kCUDA, 0);

// --- golden cases -------------------------------------------------------------------------------

Json golden_cases() {
  Comparisons comparisons;
  for (const Case& golden : golden::read_cases(golden::directory())) {
    for (const auto& [precision, expected] : golden.expected) {
      const at::ScalarType type = golden::scalar_type(precision);
      const std::string name = precision == Precision::f64 ? " float64" : " float32";
      if (step_path(golden.options, gpu_device, type) != StepPath::reference)
        comparisons.add("CUDA step," + name, golden::run_fusedbun(golden, precision, gpu_device));
      const ForceReference reference;
      comparisons.add("reference," + name, golden::run_fusedbun(golden, precision, gpu_device));
    }
  }
  return comparisons.result();
}

// --- random segments ----------------------------------------------------------------------------

struct Shape {
  int64_t rows;
  int64_t columns;
  bool is_vector = false;
};
const std::vector<Shape> kShapes = {{7, 1},    {1, 37},       {19, 15},    {17, 48},
                                    {3, 1041}, {53, 1, true}, {1025, 767}, {70001, 3}};
// One with ragged rows, one of several tiles each way, one vector.
const std::vector<Shape> kSmallShapes = {{19, 15}, {131, 1041}, {53, 1, true}};

// Types of parameters, and how a short one keeps what it cannot hold.
struct Kind {
  std::string name;
  at::ScalarType type;
  LowPrecision low_precision = LowPrecision::master;
};
const Kind kKinds[] = {
    {"float32", at::kFloat},
    {"float64", at::kDouble},
    {"bfloat16 with master", at::kBFloat16},
    {"bfloat16 with remainder", at::kBFloat16, LowPrecision::remainder},
    {"bfloat16, stochastic rounding", at::kBFloat16, LowPrecision::stochastic},
};

// Equal bits; a NaN for a NaN, whose sign and payload are the compiler's.
std::optional<std::string> difference(const Tensor& have, const Tensor& want) {
  const Tensor a = have.cpu().to(at::kDouble).flatten(), b = want.to(at::kDouble).flatten();
  const Tensor same = (a == b).logical_or(a.isnan().logical_and(b.isnan()));
  if (same.all().item<bool>()) return std::nullopt;
  const int64_t i = same.logical_not().nonzero()[0].item<int64_t>();
  return "element " + std::to_string(i) + " is " + std::to_string(a[i].item<double>()) +
         " on the GPU, " + std::to_string(b[i].item<double>()) + " on the CPU";
}

// A parameter and its optimizer on one device.
struct Stepped {
  Tensor parameter;
  Fusedbun optimizer;

  Stepped(const Tensor& initial, at::Device device, const Options& options)
      : parameter(initial.to(device, initial.scalar_type(), false, /*copy=*/true).requires_grad_()),
        optimizer({parameter}, FusedbunOptions(options)) {}
  void step(const Tensor& gradient) {
    parameter.mutable_grad() = gradient.to(parameter.device());
    optimizer.step();
  }
  std::map<std::string, Tensor> state() {
    const auto entry = optimizer.state().find(parameter.unsafeGetTensorImpl());
    std::map<std::string, Tensor> named;
    visit_tensors(static_cast<const FusedbunParamState&>(*entry->second).segment,
                  [&](const char* name, const Tensor& tensor) {
                    if (tensor.defined()) named[name] = tensor;
                  });
    return named;
  }
};

std::optional<std::string> compare(Options options, const Shape& shape,
                                   const std::vector<Tensor>& gradients, const Kind& kind) {
  options.nonfinite = Nonfinite::propagate;
  options.low_precision = kind.low_precision;
  Tensor initial = at::randn({shape.rows, shape.columns}).to(kind.type);
  if (shape.is_vector) initial = initial.flatten();
  Stepped cpu(initial, at::kCPU, options), gpu(initial, gpu_device, options);
  for (const Tensor& gradient : gradients) {
    cpu.step(gradient.view(initial.sizes()));
    gpu.step(gradient.view(initial.sizes()));
  }
  const std::string where = fusedbun::describe(options) + " on " + std::to_string(shape.rows) +
                            "x" + std::to_string(shape.columns) + ": ";
  if (const auto wrong = difference(gpu.parameter.detach(), cpu.parameter.detach()))
    return where + "parameter: " + *wrong;
  const std::map<std::string, Tensor> expected = cpu.state();
  for (const auto& [name, tensor] : gpu.state()) {
    if (const auto wrong = difference(tensor, expected.at(name)))
      return where + name + ": " + *wrong;
  }
  return std::nullopt;
}

std::vector<Tensor> random_gradients(const Shape& shape, std::mt19937_64& random,
                                     at::ScalarType type) {
  std::vector<Tensor> gradients;
  for (int t = 0; t < 3; ++t) {
    Tensor g = at::empty({shape.rows, shape.columns}, at::kDouble);
    double* values = g.data_ptr<double>();
    for (int64_t i = 0; i < g.numel(); ++i) values[i] = random_gradient<double>(random);
    gradients.push_back(g.to(type));
  }
  return gradients;
}

// Every preset with all its switches set to `on`.
std::vector<Options> options_with_all(bool on) {
  std::vector<Options> some;
  for (const Options& options : fused_options()) {
    if (options.centralize == on && options.use_rms == on && (options.Lambda > 0) == on &&
        options.bias_correction == on)
      some.push_back(options);
  }
  return some;
}

Json compare_segments(const std::vector<Shape>& shapes, const std::vector<Options>& of_long_types,
                      const std::vector<Options>& of_short_types) {
  at::set_num_threads(1);  // most tensors are small
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cerr << "FUSEDBUN_TEST_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  at::manual_seed(seed);
  Comparisons comparisons;
  for (const Kind& kind : kKinds) {
    for (const Shape& shape : shapes) {
      const auto gradients = random_gradients(shape, random, kind.type);
      auto spoiled = gradients;
      spoiled[1] = gradients[1].clone();
      spoiled[1][shape.rows / 2][shape.columns / 2] = std::numeric_limits<double>::quiet_NaN();
      for (const Options& options : kind.type == at::kBFloat16 ? of_short_types : of_long_types) {
        comparisons.add("finite, " + kind.name, compare(options, shape, gradients, kind));
        comparisons.add("with a NaN, " + kind.name, compare(options, shape, spoiled, kind));
      }
    }
  }
  Json result = comparisons.result();
  result["seed"] = seed;
  return result;
}

Json random_segments() {
  std::vector<Options> few = options_with_all(true);
  for (const Options& options : options_with_all(false)) few.push_back(options);
  return compare_segments(kShapes, fused_options(), few);
}

Json small_segments() {
  return compare_segments(kSmallShapes, options_with_all(true), options_with_all(true));
}

const std::map<std::string_view, Json (*)()> kChecks = {
    {"golden", golden_cases}, {"segments", random_segments}, {"small", small_segments}};

}  // namespace
}  // namespace fusedbun::gpu_check

int main(int argc, char** argv) {
  using namespace fusedbun::gpu_check;
  const auto check = kChecks.find(argc >= 2 ? argv[1] : "");
  const bool rehearse = argc == 3 && argv[2] == std::string_view("--rehearse");
  if (check == kChecks.end() || (argc > 2 && !rehearse)) {
    std::cerr << "usage: gpu_step_check golden | segments | small [--rehearse]\n";
    return 64;
  }
  if (rehearse) gpu_device = at::Device(at::kCPU);
  return run_check(rehearse, check->second);
}

// The optimizer's step on a GPU: every golden case, and random segments against the CPU.
//
//   gpu_step_check golden      through the CUDA step where the options have one, and through the reference on the GPU
//   gpu_step_check segments    the CUDA step against the CPU's: the same bits
//
// With `--rehearse` behind it the CPU stands in for the GPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
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
const Shape kShapes[] = {{7, 1},    {1, 37},       {19, 15},    {17, 48},
                         {3, 1041}, {53, 1, true}, {1025, 767}, {70001, 3}};

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
  SegmentState state() {
    const auto entry = optimizer.state().find(parameter.unsafeGetTensorImpl());
    return static_cast<const FusedbunParamState&>(*entry->second).segment;
  }
};

std::optional<std::string> compare(Options options, const Shape& shape,
                                   const std::vector<Tensor>& gradients, at::ScalarType type) {
  options.nonfinite = Nonfinite::propagate;
  Tensor initial = at::randn({shape.rows, shape.columns}, type);
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
  const std::map<std::string, Tensor> expected = golden::named_state(cpu.state());
  for (const auto& [name, tensor] : golden::named_state(gpu.state())) {
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

Json random_segments() {
  at::set_num_threads(1);  // most tensors are small
  const char* given = std::getenv("FUSEDBUN_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cerr << "FUSEDBUN_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  at::manual_seed(seed);
  Comparisons comparisons;
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    const std::string name = type == at::kFloat ? ", float32" : ", float64";
    for (const Shape& shape : kShapes) {
      const auto gradients = random_gradients(shape, random, type);
      auto spoiled = gradients;
      spoiled[1] = gradients[1].clone();
      spoiled[1][shape.rows / 2][shape.columns / 2] = std::numeric_limits<double>::quiet_NaN();
      for (const Options& options : fused_options()) {
        comparisons.add("finite" + name, compare(options, shape, gradients, type));
        comparisons.add("with a NaN" + name, compare(options, shape, spoiled, type));
      }
    }
  }
  Json result = comparisons.result();
  result["seed"] = seed;
  return result;
}

}  // namespace
}  // namespace fusedbun::gpu_check

int main(int argc, char** argv) {
  using namespace fusedbun::gpu_check;
  const std::string_view what = argc >= 2 ? argv[1] : "";
  const bool rehearse = argc == 3 && argv[2] == std::string_view("--rehearse");
  if ((argc == 2 || rehearse) && (what == "golden" || what == "segments")) {
    if (rehearse) gpu_device = at::Device(at::kCPU);
    return run_check(rehearse, what == "golden" ? golden_cases : random_segments);
  }
  std::cerr << "usage: gpu_step_check golden | segments [--rehearse]\n";
  return 64;
}

// The optimizer's step on a GPU: every golden case, and random segments against the CPU.
//
//   gpu_step_check golden      through the CUDA step where the options have one, and through the reference on the GPU
//   gpu_step_check segments    the CUDA step against the CPU's
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

struct Stepped {
  Tensor parameter;
  SegmentState state;
};

// One step of a whole matrix, as one process does it.
void step(Stepped& run, const Tensor& gradient, const Shape& shape, const Options& options,
          int64_t t) {
  SegmentStep step;
  step.parameter = run.parameter;
  step.gradients = {gradient.clone()};
  step.range = {0, shape.rows, shape.rows, shape.columns, shape.is_vector};
  step.scalars = step_scalars(options, t, 0.5);
  step.scalars.gradient_divisor = 3;
  step.scalars.gradient_scale = 0.75;
  if (const int64_t entries = column_entries(step.range, options); entries > 0) {
    const at::ScalarType type =
        columns_are_maxima(options) ? run.parameter.scalar_type() : at::kDouble;
    step.column_partials = at::zeros({entries}, gradient.options().dtype(type));
  }
  begin_step(step, run.state, options);
  absorb_columns(step.column_partials, step.range, step.scalars, run.state, options);
  finish_step(step, run.state, options);
}

// Equal within `relative` of |want| + max|want|/10 (momentum cancels, so roundings of large terms are left in small
// sums); NaN and inf in place and sign.
std::optional<std::string> difference(const Tensor& have, const Tensor& want, double relative) {
  const Tensor a = have.cpu().to(at::kDouble).flatten(), b = want.to(at::kDouble).flatten();
  const Tensor finite = at::where(b.isfinite(), b.abs(), at::zeros_like(b));
  const Tensor bound = (b.abs() + 0.1 * finite.max()) * relative;
  const Tensor same =
      (a == b).logical_or(a.isnan().logical_and(b.isnan())).logical_or((a - b).abs() <= bound);
  if (same.all().item<bool>()) return std::nullopt;
  const int64_t i = same.logical_not().nonzero()[0].item<int64_t>();
  return "element " + std::to_string(i) + " is " + std::to_string(a[i].item<double>()) +
         " on the GPU, " + std::to_string(b[i].item<double>()) + " on the CPU";
}

// Only the order of float64 sums differs. A rounding on the edge between two bfloat16 values changes the stored momentum by
// 2^-8 of itself; centring leaves the rounding of a row's mean in an element that is thousands of times smaller.
double tolerance(const Options& options, at::ScalarType type) {
  if (type == at::kDouble) return 1e-11;
  return options.momentum_dtype == MomentumDtype::bf16 ? 1e-2 : 1e-5;
}

std::optional<std::string> compare(const Options& options, const Shape& shape,
                                   const std::vector<Tensor>& gradients, at::ScalarType type) {
  const RowRange range{0, shape.rows, shape.rows, shape.columns, shape.is_vector};
  const Tensor initial = at::randn({shape.rows, shape.columns}, type);
  Stepped cpu{initial.clone(), make_segment_state(initial, range, options)};
  Stepped gpu{initial.to(gpu_device), make_segment_state(initial.to(gpu_device), range, options)};
  for (size_t t = 1; t <= gradients.size(); ++t) {
    step(cpu, gradients[t - 1], shape, options, static_cast<int64_t>(t));
    step(gpu, gradients[t - 1].to(gpu_device), shape, options, static_cast<int64_t>(t));
  }
  const double relative = tolerance(options, type);
  const std::string where = fusedbun::describe(options) + " on " + std::to_string(shape.rows) +
                            "x" + std::to_string(shape.columns) + ": ";
  if (const auto wrong = difference(gpu.parameter, cpu.parameter, relative))
    return where + "parameter: " + *wrong;
  std::optional<std::string> first;
  std::map<std::string, Tensor> expected = golden::named_state(cpu.state);
  for (const auto& [name, tensor] : golden::named_state(gpu.state)) {
    const auto wrong = difference(tensor, expected.at(name), relative);
    if (wrong && !first) first = where + name + ": " + *wrong;
  }
  return first;
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
        // With bfloat16 momentum an edge between two values may be met, as above, and NaN hides nothing new.
        if (options.momentum_dtype != MomentumDtype::bf16)
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

// How long one optimizer step takes per parameter, on GPT-2 124M's shapes and one thread: Fusedbun's presets beside
// LibTorch's fused AdamW. Nothing is timed before its result was compared with the reference. All optimizers take
// turns, so that a machine that is slow for a while is slow for all; the best and the middle of the rounds are
// printed. They share parameters and gradients to save memory (5 GB in all); what is in them does not change how long
// a step takes.
//
//   step_bench [rounds, default 7] [scale, default 1: divides the number of layers]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fusedbun.h"

namespace {

using at::Tensor;

std::vector<std::vector<int64_t>> gpt2_shapes(int layers) {
  std::vector<std::vector<int64_t>> shapes = {{50257, 768}, {1024, 768}, {768}, {768}};
  for (int i = 0; i < layers; ++i) {
    for (const auto& shape : std::vector<std::vector<int64_t>>{{768},
                                                               {768},
                                                               {2304, 768},
                                                               {2304},
                                                               {768, 768},
                                                               {768},
                                                               {768},
                                                               {768},
                                                               {3072, 768},
                                                               {3072},
                                                               {768, 3072},
                                                               {768}}) {
      shapes.push_back(shape);
    }
  }
  return shapes;
}

struct Contestant {
  std::string name;
  std::function<void()> step;
  std::vector<double> seconds = {};
};

std::vector<Tensor> parameters_like(const std::vector<Tensor>& values) {
  std::vector<Tensor> parameters;
  for (const Tensor& value : values) parameters.push_back(value.clone().requires_grad_());
  return parameters;
}

// The fused step's result for these parameters against the reference's: two steps, as the first has no statistics.
void check(const fusedbun::FusedbunOptions& options, const std::vector<Tensor>& values,
           const std::vector<Tensor>& gradients) {
  std::vector<Tensor> fused = parameters_like(values), reference = parameters_like(values);
  fusedbun::Fusedbun one(fused, options), other(reference, options);
  for (size_t i = 0; i < values.size(); ++i)
    fused[i].mutable_grad() = reference[i].mutable_grad() = gradients[i];
  for (int step = 0; step < 2; ++step) {
    one.step();
    const fusedbun::ForceReference forced;
    other.step();
  }
  for (size_t i = 0; i < values.size(); ++i) {
    FUSEDBUN_ASSERT(fused[i].allclose(reference[i], /*rtol=*/1e-4, /*atol=*/1e-6),
                    "the fused step is wrong: not timed");
  }
}

Contestant adamw(const std::vector<Tensor>& values, const std::vector<Tensor>& gradients) {
  std::vector<Tensor> averages, squares, steps;
  for (const Tensor& value : values) {
    averages.push_back(at::zeros_like(value));
    squares.push_back(at::zeros_like(value));
    steps.push_back(at::ones({}));
  }
  return {"LibTorch AdamW, fused", [=, parameters = values]() mutable {
            at::_fused_adamw_(parameters, gradients, averages, squares, {}, steps, /*lr=*/1e-3,
                              /*beta1=*/0.9,
                              /*beta2=*/0.95, /*weight_decay=*/0.1, /*eps=*/1e-8, /*amsgrad=*/false,
                              /*maximize=*/false);
          }};
}

Contestant fusedbun_preset(const std::string& name, bool bf16, const std::vector<Tensor>& values,
                           const std::vector<Tensor>& gradients) {
  fusedbun::FusedbunOptions options =
      fusedbun::FusedbunOptions::of_preset(name, 1e-3).use_rms(true);
  options.nonfinite(
      fusedbun::Nonfinite::propagate);  // the gradient's test is timed apart, as in a sharded step
  if (bf16) options.momentum_dtype(fusedbun::MomentumDtype::bf16);
  check(options, values, gradients);
  auto optimizer = std::make_shared<fusedbun::Fusedbun>(values, options);
  for (size_t i = 0; i < values.size(); ++i) values[i].mutable_grad() = gradients[i];
  return {"Fusedbun " + name + (bf16 ? ", bf16 momentum" : ""), [=] { optimizer->step(); }};
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  const int scale = argc > 2 ? std::atoi(argv[2]) : 1;
  at::set_num_threads(1);
  at::manual_seed(1);
  at::NoGradGuard no_grad;
  std::vector<Tensor> values, gradients;
  int64_t count = 0;
  for (const auto& shape : gpt2_shapes(std::max(1, 12 / scale))) {
    values.push_back(at::randn(shape) * 0.02);
    gradients.push_back(at::randn(shape) * 1e-3);
    count += values.back().numel();
  }
  std::vector<Contestant> contestants = {adamw(values, gradients)};
  for (const std::string& name : fusedbun::preset_names()) {
    contestants.push_back(fusedbun_preset(name, false, values, gradients));
  }
  contestants.push_back(fusedbun_preset("recommended", true, values, gradients));
  for (int round = 0; round <= rounds; ++round) {
    for (Contestant& contestant : contestants) {
      const auto start = std::chrono::steady_clock::now();
      contestant.step();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      if (round > 0) contestant.seconds.push_back(took.count());  // the first one warms up
    }
  }
  std::printf("%lld parameters, float32, one thread, %d rounds\n", static_cast<long long>(count),
              rounds);
  for (Contestant& contestant : contestants) {
    std::sort(contestant.seconds.begin(), contestant.seconds.end());
    const double nanoseconds = 1e9 / static_cast<double>(count);
    std::printf("%-36s best %.3f, median %.3f ns/param\n", contestant.name.c_str(),
                contestant.seconds.front() * nanoseconds,
                contestant.seconds[contestant.seconds.size() / 2] * nanoseconds);
  }
}

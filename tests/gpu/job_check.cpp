// One rank with a GPU, connected by Job over NCCL: hooks, reduce-scatter, step and all-gather of ShardedFusedbun against
// Fusedbun on the CPU, for every preset, with and without clipping.
//
//   gpu_job_check [--rehearse]      with it: on the CPU, without NCCL
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/ordered_dict.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/tests/gpu/gpu_check.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;
using Model = torch::OrderedDict<std::string, Tensor>;

constexpr int kSteps = 5;
const std::vector<std::vector<int64_t>> kShapes = {{129, 65}, {64}, {8, 3, 5, 5}, {1000, 256}, {1}};

Model model_on(const std::vector<Tensor>& initial, at::Device device) {
  Model model;
  for (size_t k = 0; k < initial.size(); ++k) {
    model.insert("p" + std::to_string(k), initial[k].clone().to(device).requires_grad_());
  }
  return model;
}

// A backward pass whose gradient of parameter k is gradients[k].
void backward(Model& model, const std::vector<Tensor>& gradients, at::Device device) {
  Tensor loss = at::zeros({}, device);
  for (size_t k = 0; k < gradients.size(); ++k) {
    loss = loss + (model[k].value() * gradients[k].to(device)).sum();
  }
  torch::autograd::backward({loss});
}

// What clipping to a norm does, for the optimizer that does not clip by itself.
void clip(Model& model, double max_norm) {
  double squares = 0;
  for (const auto& entry : model)
    squares += entry.value().grad().to(at::kDouble).square().sum().item<double>();
  const double factor = max_norm / (std::sqrt(squares) + 1e-6);
  if (factor >= 1) return;
  for (auto& entry : model) entry.value().mutable_grad().mul_(factor);
}

std::optional<std::string> run(Job& job, at::Device gpu, const std::string& preset,
                               double max_norm) {
  at::manual_seed(7);
  std::vector<Tensor> initial;
  for (const auto& shape : kShapes) initial.push_back(at::randn(shape));
  Model on_gpu = model_on(initial, gpu), on_cpu = model_on(initial, at::kCPU);
  const auto options = FusedbunOptions::of_preset(preset, 1e-2).use_rms(true);
  ShardedFusedbun sharded(job.channels(), on_gpu, options,
                          {.bucket_bytes = 64 << 10, .max_grad_norm = max_norm});
  Fusedbun plain(on_cpu.values(), options);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<Tensor> gradients;
    for (const auto& shape : kShapes) gradients.push_back(at::randn(shape));
    sharded.zero_grad();
    plain.zero_grad();
    backward(on_gpu, gradients, gpu);
    backward(on_cpu, gradients, at::kCPU);
    if (max_norm > 0) clip(on_cpu, max_norm);
    sharded.step();
    plain.step();
  }
  sharded.finish();
  for (size_t k = 0; k < kShapes.size(); ++k) {
    const Tensor have = on_gpu[k].value().detach().cpu(), want = on_cpu[k].value().detach();
    const double off = (have - want).abs().max().item<double>();
    if (!(off <= 1e-5))
      return preset + ": p" + std::to_string(k) + " is " + std::to_string(off) + " off";
  }
  return std::nullopt;
}

Json one_rank(bool rehearse) {
  at::set_num_threads(1);  // the tensors are small
  Job job({.control = false, .use_gpu = !rehearse});
  const at::Device gpu = rehearse ? at::Device(at::kCPU) : job.placement().device;
  Comparisons comparisons;
  const bool expected = rehearse || job.backend().backend == plan::BackendRequest::nccl;
  comparisons.add("backend",
                  expected ? std::nullopt : std::optional("not NCCL: " + job.backend().reason));
  try {
    for (const std::string& preset : preset_names()) {
      comparisons.add("preset", run(job, gpu, preset, 0));
      comparisons.add("preset, clipped", run(job, gpu, preset, 0.5));
    }
  } catch (const std::exception& error) {
    job.fail(error);
  }
  job.finish();
  Json result = comparisons.result();
  result["backend"] = job.backend().reason;
  return result;
}

}  // namespace
}  // namespace fusedbun::gpu_check

int main(int argc, char** argv) {
  const bool rehearse = argc == 2 && argv[1] == std::string_view("--rehearse");
  return fusedbun::gpu_check::run_check(
      rehearse, [rehearse] { return fusedbun::gpu_check::one_rank(rehearse); });
}

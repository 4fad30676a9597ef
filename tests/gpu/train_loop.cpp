// A training loop on one GPU: what a step takes with one optimizer or another, in time and memory, on the same model and the same batch.
//
//   gpu_train_loop --model NAME --optimizer NAME [--optimizer NAME]... [--rehearse]
//
// --model 124m, 1.5b (GPT-2's shapes), llama (LLaMA-30B's, with --layers of them), tiny, tiny-llama. --sequences of --context tokens make the
// batch; --rounds are timed, after --warm-ups that are not. The names of the optimizers are in train_step.cpp. Prints a line of JSON per optimizer
// when it is done; times in seconds, each round's. Exit code 71 if the GPU's memory is full.
#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>
#include <map>
#include <memory>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/device_error.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/tests/gpu/gpu_check.h"
#include "fusedbun/tests/gpu/llama.h"
#include "fusedbun/tests/gpu/train_step.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;

struct Flags {
  std::string model;
  std::vector<std::string> optimizers;
  int64_t layers = 2, sequences = 1, context = 0, rounds = 5, warm_ups = 2;
  bool rehearse = false;
};

// --- models -------------------------------------------------------------------------------------

struct Model {
  torch::OrderedDict<std::string, Tensor> parameters;
  std::function<Tensor(const Tensor& tokens, const Tensor& targets)> loss;
  /// Weights as at the beginning of training, in the contestant's type.
  std::function<void(const Contestant&)> restart;
  int64_t layers = 0;
  int64_t vocab = 0;
  int64_t context = 0;  ///< the longest sequence
};

Model gpt2(const model::Gpt2Config& config, at::Device device) {
  model::Gpt2 model(config, /*seed=*/1);
  Model result{
      .parameters = model->named_parameters(),
      .loss = [model](const Tensor& tokens,
                      const Tensor& targets) mutable { return model->loss(tokens, targets); },
      .restart = {},
      .layers = config.n_layer,
      .vocab = config.vocab,
      .context = config.n_ctx};
  std::vector<Tensor> vectors;  // biases and norms as they begin
  for (const Tensor& parameter : result.parameters.values())
    vectors.push_back(parameter.dim() == 1 ? parameter.detach() : Tensor());
  // Matrices are drawn on the device: nothing of their size passes through the host again.
  result.restart = [=, parameters = result.parameters.values()](const Contestant& with) mutable {
    at::manual_seed(1);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Tensor values = at::empty(
          parameters[i].sizes(),
          at::TensorOptions(device).dtype(with.bf16_parameters ? at::kBFloat16 : at::kFloat));
      vectors[i].defined() ? values.copy_(vectors[i]) : values.normal_(0, 0.02);
      parameters[i].set_data(values);
    }
    model->set_forward(
        {.autocast = with.bf16_parameters ? std::nullopt : std::optional(at::kBFloat16)});
  };
  return result;
}

Model llama(const LlamaShape& shape, int64_t context, at::Device device) {
  const auto model = std::make_shared<Llama>(shape, device, at::kBFloat16);
  return {.parameters = model->parameters(),
          .loss = [model](const Tensor& tokens,
                          const Tensor& targets) { return model->loss(tokens, targets); },
          .restart =
              [](const Contestant& with) {
                FUSEDBUN_REQUIRE(with.bf16_parameters, ConfigError,
                                 "this model's parameters are bfloat16");
              },
          .layers = shape.layers,
          .vocab = shape.vocab,
          .context = context};
}

Model model_of(const Flags& flags, at::Device device) {
  if (flags.model == "tiny")
    return gpt2({.n_layer = 2, .n_head = 2, .n_embd = 32, .n_ctx = 16, .vocab = 64}, device);
  if (flags.model == "124m")
    return gpt2({.n_layer = 12, .n_head = 12, .n_embd = 768, .n_ctx = 1024, .vocab = 50304},
                device);
  if (flags.model == "1.5b")
    return gpt2({.n_layer = 48, .n_head = 25, .n_embd = 1600, .n_ctx = 1024, .vocab = 50304},
                device);
  if (flags.model == "tiny-llama")
    return llama(
        {.layers = flags.layers, .width = 64, .mlp = 96, .heads = 4, .kv_heads = 2, .vocab = 128},
        /*context=*/16, device);
  if (flags.model == "llama") return llama({.layers = flags.layers}, /*context=*/2048, device);
  throw ConfigError("--model = '" + flags.model +
                    "': there are 124m, 1.5b, llama, tiny and tiny-llama");
}

// --- memory and time ----------------------------------------------------------------------------

void wait_for(at::Device device) {
  if (!device.is_cpu()) at::detail::getCUDAHooks().deviceSynchronize(device.index());
}

double seconds_of(at::Device device, const std::function<void()>& work) {
  wait_for(device);
  const auto start = std::chrono::steady_clock::now();
  work();
  wait_for(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What LibTorch's allocator has given out; null on a CPU, where nobody counts.
struct Memory {
  Json now, peak, peak_reserved;
};
Memory memory_of(at::Device device) {
  if (device.is_cpu()) return {};
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const auto stats = at::accelerator::getDeviceStats(device.index());
  return {.now = stats.allocated_bytes[kAll].current,
          .peak = stats.allocated_bytes[kAll].peak,
          .peak_reserved = stats.reserved_bytes[kAll].peak};
}
void forget_peak(at::Device device) {
  if (!device.is_cpu()) at::accelerator::resetPeakStats(device.index());
}

// --- one run ------------------------------------------------------------------------------------

/// Frees a gradient as soon as it is final.
struct DropGradient : torch::autograd::PostAccumulateGradHook {
  void operator()(const Tensor& parameter) override { parameter.mutable_grad().reset(); }
};

/// Forward and backward alone: their times, and what they need beyond the parameters, one gradient at a time included.
Json bare_passes(Model& model, const std::function<Tensor()>& pass, const Flags& flags,
                 at::Device device) {
  for (const Tensor& parameter : model.parameters.values())
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<DropGradient>());
  pass();
  forget_peak(device);
  const Memory before = memory_of(device);
  std::vector<double> seconds;
  for (int64_t round = 0; round < flags.rounds; ++round)
    seconds.push_back(seconds_of(device, [&] { pass(); }));
  const Memory after = memory_of(device);
  for (const Tensor& parameter : model.parameters.values())
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  Json activations;
  if (!device.is_cpu()) activations = after.peak.get<int64_t>() - before.now.get<int64_t>();
  return {{"forward_backward_seconds", seconds}, {"activation_bytes", activations}};
}

Json run(Model& model, const Contestant& contestant, const Flags& flags, const Channels& channels,
         at::Device device) {
  model.restart(contestant);
  const int64_t context = flags.context > 0 ? flags.context : model.context;
  const Tensor text = at::randint(model.vocab, {flags.sequences, context + 1},
                                  at::TensorOptions(device).dtype(at::kLong));
  const Tensor tokens = text.narrow(1, 0, context).contiguous();
  const Tensor targets = text.narrow(1, 1, context).contiguous();
  const std::function<Tensor()> pass = [&] {
    const Tensor loss = model.loss(tokens, targets);
    loss.backward();
    return loss.detach();
  };
  const Json bare = bare_passes(model, pass, flags, device);

  const auto step = make_train_step(contestant, channels, model.parameters);
  forget_peak(device);
  std::vector<double> seconds;
  std::vector<Tensor> losses;
  for (int64_t round = 0; round < flags.warm_ups + flags.rounds; ++round) {
    const double took = seconds_of(device, [&] {
      losses.push_back(pass());
      step->step();
    });
    if (round >= flags.warm_ups) seconds.push_back(took);
  }
  step->finish();
  int64_t elements = 0, bytes = 0;
  for (const Tensor& parameter : model.parameters.values()) {
    elements += parameter.numel();
    bytes += static_cast<int64_t>(parameter.nbytes());
  }
  const double first = losses.front().item<double>(), last = losses.back().item<double>();
  const Memory memory = memory_of(device);
  Json result{{"held", std::isfinite(first) && std::isfinite(last)},
              {"model", flags.model},
              {"optimizer", contestant.name},
              {"layers", model.layers},
              {"parameters", elements},
              {"tokens_per_step", flags.sequences * context},
              {"step_seconds", seconds},
              {"losses", {first, last}},
              {"parameter_bytes", bytes},
              {"state_bytes", step->state_bytes()},
              {"gradient_bytes", step->gradient_bytes()},
              {"peak_bytes", memory.peak},
              {"peak_reserved_bytes", memory.peak_reserved},
              {"free_bytes", nullptr}};
  if (!device.is_cpu()) result["free_bytes"] = at::accelerator::getMemoryInfo(device.index()).first;
  result.update(bare);
  return result;
}

Json all_runs(const Flags& flags) {
  at::manual_seed(1);
  at::Device device(at::kCPU);
  bool held = true;
  std::unique_ptr<Job> job;  // only where it is needed: AdamW pays no memory for NCCL
  try {
    for (const std::string& name : flags.optimizers) {
      if (!contestant_of(name).preset.empty() && job == nullptr)
        job = std::make_unique<Job>(JobOptions{.control = false, .use_gpu = !flags.rehearse});
    }
    if (!flags.rehearse)
      device = job == nullptr ? at::Device(at::kCUDA, 0) : job->placement().device;
    Model model = model_of(flags, device);
    for (const std::string& name : flags.optimizers) {
      const Json done = run(model, contestant_of(name), flags,
                            job == nullptr ? Channels{} : job->channels(), device);
      std::cout << done.dump() << std::endl;
      held = held && done["held"].get<bool>();
    }
    if (job != nullptr) job->finish();
  } catch (const std::exception& error) {
    if (job != nullptr) job->fail(error);
    if (const auto full = device_error_behind(error, flags.model)) throw DeviceError(*full);
    throw;
  }
  return {{"held", held}};
}

Flags parsed(int argc, char** argv) {
  Flags flags;
  const std::map<std::string, int64_t*> numbers = {{"--layers", &flags.layers},
                                                   {"--sequences", &flags.sequences},
                                                   {"--context", &flags.context},
                                                   {"--rounds", &flags.rounds},
                                                   {"--warm-ups", &flags.warm_ups}};
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--rehearse") {
      flags.rehearse = true;
      continue;
    }
    FUSEDBUN_REQUIRE(i + 1 < argc, ConfigError, flag + " lacks a value");
    const std::string value = argv[++i];
    if (flag == "--model") {
      flags.model = value;
    } else if (flag == "--optimizer") {
      flags.optimizers.push_back(value);
    } else {
      FUSEDBUN_REQUIRE(numbers.contains(flag), ConfigError, "there is no " + flag);
      *numbers.at(flag) = std::stoll(value);
    }
  }
  return flags;
}

}  // namespace
}  // namespace fusedbun::gpu_check

int main(int argc, char** argv) {
  using namespace fusedbun::gpu_check;
  const bool rehearse = argc > 1 && argv[argc - 1] == std::string_view("--rehearse");
  return run_check(rehearse, [&] { return all_runs(parsed(argc, argv)); });
}

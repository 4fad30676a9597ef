#include "fusedbun/tests/gpu/train_step.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;
using Parameters = torch::OrderedDict<std::string, Tensor>;

constexpr double kMaxNorm = 1;

const std::vector<Contestant> kContestants = {
    {.name = "recommended, autocast", .preset = "recommended", .bf16_parameters = false},
    {.name = "compact, autocast", .preset = "compact", .bf16_parameters = false},
    {.name = "recommended, bf16", .preset = "recommended"},
    {.name = "compact, bf16", .preset = "compact"},
    {.name = "compact, bf16, in backward", .preset = "compact", .steps_in_backward = true},
    {.name = "AdamW, autocast", .bf16_parameters = false},
    {.name = "AdamW, bf16"},
    {.name = "AdamW, bf16 with float32 masters", .float32_masters = true},
    {.name = "AdamW, bf16, in backward", .steps_in_backward = true},
};

int64_t bytes_of(const std::vector<Tensor>& tensors) {
  int64_t bytes = 0;
  for (const Tensor& tensor : tensors) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

class FusedbunStep final : public TrainStep {
 public:
  FusedbunStep(const Contestant& contestant, const Channels& channels, const Parameters& parameters)
      : in_backward_(contestant.steps_in_backward),
        optimizer_(channels, parameters, options_of(contestant),
                   {.max_grad_norm = kMaxNorm,
                    .clip_by_previous_norm = in_backward_,
                    .transport = plan::GradientTransport::collective,
                    .step_in_backward = in_backward_,
                    .release = GradientRelease::in_hook}) {}

  void step() override { optimizer_.step(); }
  void finish() override { optimizer_.finish(); }
  int64_t state_bytes() const override { return optimizer_.state_bytes(); }
  int64_t gradient_bytes() const override {
    std::vector<int64_t> buckets;
    int64_t all = 0;
    for (const plan::Bucket& bucket : optimizer_.shard_plan().buckets) {
      const auto element = optimizer_.parameter(bucket.parameters.front()).element_size();
      buckets.push_back(bucket.elements() * static_cast<int64_t>(element));
      all += buckets.back();
    }
    return in_backward_ ? std::min(all, 2 * std::ranges::max(buckets)) : all;
  }

 private:
  static FusedbunOptions options_of(const Contestant& contestant) {
    const double lr = contestant.preset == "compact" ? 1e-2 : 1e-3;  // relative; absolute
    auto options = FusedbunOptions::of_preset(contestant.preset, lr);
    if (contestant.bf16_parameters)
      options.low_precision(LowPrecision::stochastic).momentum_dtype(MomentumDtype::bf16);
    if (contestant.steps_in_backward) options.nonfinite(Nonfinite::propagate);
    return options;
  }

  bool in_backward_;
  ShardedFusedbun optimizer_;
};

/// torch.optim.AdamW(fused=True), and torch.nn.utils.clip_grad_norm_ as it works on GPUs: without waiting for the norm.
class AdamwStep final : public TrainStep {
 public:
  AdamwStep(const Contestant& contestant, const Parameters& parameters)
      : contestant_(contestant), parameters_(parameters.values()) {
    for (Tensor& parameter : parameters_) {
      const Tensor values = parameter.detach();
      stepped_.push_back(contestant.float32_masters ? values.to(at::kFloat) : values);
      averages_.push_back(at::zeros_like(stepped_.back()));
      squares_.push_back(at::zeros_like(stepped_.back()));
      counts_.push_back(at::zeros({}, values.options().dtype(at::kFloat)));
    }
    if (!contestant.steps_in_backward) return;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameters_[i],
                                                     std::make_unique<StepOne>(*this, i));
    }
  }
  ~AdamwStep() override {
    for (const Tensor& parameter : parameters_)
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
  }

  void step() override {
    if (contestant_.steps_in_backward) return;
    const at::NoGradGuard no_grad;
    std::vector<Tensor> gradients;
    for (const Tensor& parameter : parameters_) gradients.push_back(parameter.grad());
    clip(gradients);
    gradients.clear();
    if (contestant_.float32_masters) {
      // One after the other, so that one gradient in float32 is there at a time.
      for (size_t i = 0; i < parameters_.size(); ++i) step_one(i);
      return;
    }
    for (const Tensor& parameter : parameters_) gradients.push_back(parameter.grad());
    update(stepped_, gradients, averages_, squares_, counts_);
    for (const Tensor& parameter : parameters_) parameter.mutable_grad().reset();
  }

  int64_t state_bytes() const override {
    const int64_t moments = bytes_of(averages_) + bytes_of(squares_);
    return moments + (contestant_.float32_masters ? bytes_of(stepped_) : 0);
  }
  int64_t gradient_bytes() const override {
    return contestant_.steps_in_backward ? 0 : bytes_of(parameters_);
  }

 private:
  struct StepOne final : torch::autograd::PostAccumulateGradHook {
    StepOne(AdamwStep& step, size_t index) : step_(step), index_(index) {}
    void operator()(const Tensor&) override {
      const at::NoGradGuard no_grad;
      step_.step_one(index_);
    }
    AdamwStep& step_;
    size_t index_;
  };

  static void clip(const std::vector<Tensor>& gradients) {
    const Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients)));
    at::_foreach_mul_(gradients, (kMaxNorm / (norm + 1e-6)).clamp_max(1));
  }
  static void update(at::TensorList values, at::TensorList gradients, at::TensorList averages,
                     at::TensorList squares, at::TensorList counts) {
    at::_foreach_add_(counts, 1);
    at::_fused_adamw_(values, gradients, averages, squares, {}, counts, /*lr=*/1e-4, /*beta1=*/0.9,
                      /*beta2=*/0.95, /*weight_decay=*/0.1, /*eps=*/1e-8, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
  void step_one(size_t i) {
    const Tensor gradient = parameters_[i].grad().to(stepped_[i].scalar_type());
    parameters_[i].mutable_grad().reset();
    update(stepped_[i], gradient, averages_[i], squares_[i], counts_[i]);
    if (contestant_.float32_masters) parameters_[i].detach().copy_(stepped_[i]);
  }

  const Contestant contestant_;
  std::vector<Tensor> parameters_;
  std::vector<Tensor> stepped_;  ///< their memory, or their masters
  std::vector<Tensor> averages_, squares_, counts_;
};

}  // namespace

const std::vector<Contestant>& contestants() {
  return kContestants;
}

const Contestant& contestant_of(const std::string& name) {
  const auto found = std::ranges::find(kContestants, name, &Contestant::name);
  if (found != kContestants.end()) return *found;
  std::string names;
  for (const Contestant& contestant : kContestants) names += " '" + contestant.name + "'";
  throw ConfigError("--optimizer = '" + name + "': there are" + names);
}

std::unique_ptr<TrainStep> make_train_step(const Contestant& contestant, const Channels& channels,
                                           const Parameters& parameters) {
  if (contestant.preset.empty()) return std::make_unique<AdamwStep>(contestant, parameters);
  return std::make_unique<FusedbunStep>(contestant, channels, parameters);
}

}  // namespace fusedbun::gpu_check

#include "fusedbun/launcher/bench/strategies.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/device_stream.h"

namespace fusedbun::bench {
namespace {

using Parameters = torch::OrderedDict<std::string, at::Tensor>;

const std::vector<Contestant> kContestants = {
    {.name = "window, agreed", .host_window = true},
    {.name = "window, agreed + clipped", .host_window = true, .max_grad_norm = 1},
    {.name = "window, in backward", .host_window = true, .in_backward = true},
    {.name = "window, compact, agreed", .preset = "compact", .host_window = true},
    {.name = "messages, agreed"},
    {.name = "messages, in backward", .in_backward = true},
    {.name = "messages, bf16 on the wire, agreed", .bf16_on_wire = true},
    {.name = "messages, bf16 both ways, agreed", .bf16_on_wire = true, .bf16_both_ways = true},
    {.name = "messages, bf16 both ways, in backward",
     .bf16_on_wire = true,
     .bf16_both_ways = true,
     .in_backward = true},
    {.name = "all_reduce + AdamW fused", .adamw = true},
};

class FusedbunStep : public ParallelStep {
 public:
  FusedbunStep(const Contestant& contestant, Channels channels, const Parameters& parameters,
               bool keep_gradients)
      : optimizer_(
            channels, parameters, options_of(contestant),
            {.bucket_bytes = contestant.bucket_bytes,
             .max_grad_norm = contestant.max_grad_norm,
             .gradient_divisor = channels.data->size(),
             .gradient_wire = contestant.bf16_on_wire ? GradientWire::bf16 : GradientWire::exact,
             .update_wire = contestant.bf16_both_ways ? UpdateWire::bf16 : UpdateWire::exact,
             .step_in_backward = contestant.in_backward,
             .host_window = contestant.host_window,
             .release = keep_gradients ? GradientRelease::never : GradientRelease::in_hook}) {}

  void step() override { optimizer_.step(); }
  int64_t state_bytes() const override { return optimizer_.state_bytes(); }

 private:
  static FusedbunOptions options_of(const Contestant& contestant) {
    auto options = FusedbunOptions::of_preset(contestant.preset, 1e-3);
    if (contestant.in_backward) options.nonfinite(Nonfinite::propagate);
    return options;
  }

  ShardedFusedbun optimizer_;
};

/// What a plain data-parallel loop does: one all_reduce over our transport, then LibTorch's fused AdamW.
class AdamwStep : public ParallelStep {
 public:
  AdamwStep(Channels channels, const Parameters& parameters, bool keep_gradients)
      : data_(*channels.data), parameters_(parameters.values()), keep_gradients_(keep_gradients) {
    int64_t elements = 0;
    for (const at::Tensor& parameter : parameters_) {
      averages_.push_back(at::zeros_like(parameter));
      squares_.push_back(at::zeros_like(parameter));
      steps_.push_back(at::ones({}, parameter.options().dtype(at::kFloat)));
      elements += parameter.numel();
    }
    message_ = at::empty({elements}, parameters_.front().options().dtype(at::kFloat));
    int64_t begin = 0;
    for (const at::Tensor& parameter : parameters_) {
      places_.push_back(message_.narrow(0, begin, parameter.numel()).view(parameter.sizes()));
      begin += parameter.numel();
    }
  }

  void step() override {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < parameters_.size(); ++i) places_[i].copy_(parameters_[i].grad());
    comm::Work sum = data_.all_reduce({message_.data_ptr(), message_.numel(), comm::DataType::f32},
                                      comm::ReduceOp::sum, current_stream(message_.device()));
    wait_for(sum, message_.device());
    message_.div_(data_.size());
    at::_fused_adamw_(parameters_, places_, averages_, squares_, {}, steps_, /*lr=*/1e-3,
                      /*beta1=*/0.9, /*beta2=*/0.95, /*weight_decay=*/0.1, /*eps=*/1e-8,
                      /*amsgrad=*/false, /*maximize=*/false);
    if (keep_gradients_) return;
    for (at::Tensor& parameter : parameters_) parameter.mutable_grad().reset();
  }

  int64_t state_bytes() const override { return 2 * static_cast<int64_t>(message_.nbytes()); }

 private:
  comm::Communicator& data_;
  std::vector<at::Tensor> parameters_, averages_, squares_, steps_, places_;
  at::Tensor message_;
  bool keep_gradients_;
};

}  // namespace

const std::vector<Contestant>& contestants() {
  return kContestants;
}

std::vector<Contestant> chosen(const std::vector<std::string>& names, const Setting& setting) {
  std::vector<Contestant> result;
  for (const Contestant& contestant : kContestants) {
    if (contestant.in_backward && !setting.with_backward) continue;
    if ((contestant.host_window || contestant.bf16_on_wire) && setting.on_gpu) continue;
    const bool asked = names.empty() || std::ranges::find(names, contestant.name) != names.end();
    if (!asked) continue;
    result.push_back(contestant);
    result.back().bucket_bytes = setting.bucket_bytes;
  }
  for (const std::string& name : names) {
    FUSEDBUN_REQUIRE(
        std::ranges::find(result, name, &Contestant::name) != result.end(), ConfigError,
        "--only = \"" + name + "\" is no row of this benchmark; without --only it shows all");
  }
  return result;
}

std::unique_ptr<ParallelStep> make_step(const Contestant& contestant, Channels channels,
                                        const Parameters& parameters, bool keep_gradients) {
  if (contestant.adamw) return std::make_unique<AdamwStep>(channels, parameters, keep_gradients);
  return std::make_unique<FusedbunStep>(contestant, channels, parameters, keep_gradients);
}

}  // namespace fusedbun::bench

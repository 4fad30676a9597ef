#include "fusedbun/launcher/train/gpt2.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <torch/utils.h>

#include <cmath>
#include <string>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/train/activation_checkpoint.h"
#include "fusedbun/launcher/train/autocast.h"

namespace fusedbun::train {
namespace {

constexpr double kInitialDeviation = 0.02;

torch::nn::LayerNorm layer_norm(int64_t width) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}).eps(1e-5));
}

/// layer(x). torch::nn::Linear adds the bias in a pass of its own, and where it is of another type than the product, as under autocast,
/// through copies of the whole output in float32; so short types take one call for both.
torch::Tensor project(torch::nn::Linear& layer, const torch::Tensor& x) {
  const bool is_short = layer->weight.scalar_type() != at::kFloat ||
                        at::autocast::is_autocast_enabled(x.device().type());
  return is_short ? at::linear(x, layer->weight, layer->bias) : layer->forward(x);
}

class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const Gpt2Config& config)
      : heads_(config.n_head),
        c_attn_(register_module("c_attn", torch::nn::Linear(config.n_embd, 3 * config.n_embd))),
        c_proj_(register_module("c_proj", torch::nn::Linear(config.n_embd, config.n_embd))) {}

  torch::Tensor forward(const torch::Tensor& x) {  // [batch, time, width]
    const int64_t batch = x.size(0), time = x.size(1), width = x.size(2);
    const auto parts = project(c_attn_, x).view({batch, time, 3, heads_, width / heads_}).unbind(2);
    const auto mixed =
        at::scaled_dot_product_attention(parts[0].transpose(1, 2), parts[1].transpose(1, 2),
                                         parts[2].transpose(1, 2), /*attn_mask=*/{},
                                         /*dropout_p=*/0.0, /*is_causal=*/true);
    return project(c_proj_, mixed.transpose(1, 2).reshape({batch, time, width}));
  }

 private:
  int64_t heads_;
  torch::nn::Linear c_attn_, c_proj_;
};
TORCH_MODULE(Attention);

class MlpImpl : public torch::nn::Module {
 public:
  explicit MlpImpl(const Gpt2Config& config)
      : c_fc_(register_module("c_fc", torch::nn::Linear(config.n_embd, 4 * config.n_embd))),
        c_proj_(register_module("c_proj", torch::nn::Linear(4 * config.n_embd, config.n_embd))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    return project(c_proj_, at::gelu(project(c_fc_, x), "tanh"));
  }

 private:
  torch::nn::Linear c_fc_, c_proj_;
};
TORCH_MODULE(Mlp);

class BlockImpl : public torch::nn::Module {
 public:
  explicit BlockImpl(const Gpt2Config& config)
      : ln_1_(register_module("ln_1", layer_norm(config.n_embd))),
        attn_(register_module("attn", Attention(config))),
        ln_2_(register_module("ln_2", layer_norm(config.n_embd))),
        mlp_(register_module("mlp", Mlp(config))) {}

  torch::Tensor forward(const torch::Tensor& x) {
    const torch::Tensor attended = x + attn_(ln_1_(x));
    return attended + mlp_(ln_2_(attended));
  }

 private:
  torch::nn::LayerNorm ln_1_;
  Attention attn_;
  torch::nn::LayerNorm ln_2_;
  Mlp mlp_;
};
TORCH_MODULE(Block);

}  // namespace

void validate(const Gpt2Config& config) {
  const auto require_positive = [](const char* name, int64_t value) {
    FUSEDBUN_REQUIRE(value >= 1, ConfigError,
                     std::string(name) + " = " + std::to_string(value) + ": must be at least 1");
  };
  require_positive("layers", config.n_layer);
  require_positive("heads", config.n_head);
  require_positive("width", config.n_embd);
  require_positive("context", config.n_ctx);
  require_positive("vocabulary", config.vocab);
  FUSEDBUN_REQUIRE(config.n_embd % config.n_head == 0, ConfigError,
                   "width = " + std::to_string(config.n_embd) +
                       ": must be a multiple of heads = " + std::to_string(config.n_head));
}

Gpt2Impl::Gpt2Impl(const Gpt2Config& config, uint64_t seed) : config_(config) {
  validate(config);
  wte_ = register_module("wte", torch::nn::Embedding(config.vocab, config.n_embd));
  wpe_ = register_module("wpe", torch::nn::Embedding(config.n_ctx, config.n_embd));
  h_ = register_module("h", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.n_layer; ++i) h_->push_back(Block(config));
  ln_f_ = register_module("ln_f", layer_norm(config.n_embd));
  initialise(seed);
}

void Gpt2Impl::initialise(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double residual_deviation =
      kInitialDeviation / std::sqrt(2.0 * static_cast<double>(config_.n_layer));
  for (auto& parameter : named_parameters()) {
    const std::string_view name = parameter.key();
    torch::Tensor& values = parameter.value();
    if (values.dim() == 1) {
      values.fill_(name.ends_with("ln_1.weight") || name.ends_with("ln_2.weight") ||
                   name == "ln_f.weight");
    } else {
      values.normal_(0, name.ends_with("c_proj.weight") ? residual_deviation : kInitialDeviation,
                     generator);
    }
  }
}

torch::Tensor Gpt2Impl::forward(const torch::Tensor& tokens) {
  FUSEDBUN_ASSERT(tokens.dim() == 2 && tokens.size(1) <= config_.n_ctx,
                  "tokens must be [batch, time <= n_ctx]");
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  const torch::Tensor positions = at::arange(tokens.size(1), tokens.options());
  torch::Tensor x = wte_(tokens) + wpe_(positions);
  for (const auto& module : *h_) {
    auto* const block = module->as<Block>();
    x = forward_.checkpoints_activations
            ? checkpointed([block](const at::Tensor& input) { return block->forward(input); }, x)
            : block->forward(x);
  }
  return at::linear(ln_f_(x), wte_->weight);
}

torch::Tensor Gpt2Impl::loss(const torch::Tensor& tokens, const torch::Tensor& targets) {
  return at::cross_entropy_loss(forward(tokens).to(at::kFloat).flatten(0, 1), targets.flatten());
}

int64_t Gpt2Impl::parameter_count() const {
  int64_t count = 0;
  for (const torch::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

}  // namespace fusedbun::train

#include "fusedbun/launcher/model/gpt2.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/utils.h>

#include <cmath>
#include <string>
#include <string_view>
#include <tuple>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/linear.h"

namespace fusedbun::model {
namespace {

torch::nn::LayerNorm layer_norm(int64_t width) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({width}).eps(1e-5));
}

class AttentionImpl : public torch::nn::Module {
 public:
  explicit AttentionImpl(const Gpt2Config& config)
      : heads_(config.n_head),
        c_attn_(register_module("c_attn", linear(config.n_embd, 3 * config.n_embd, true))),
        c_proj_(register_module("c_proj", linear(config.n_embd, config.n_embd, true))) {}

  /// x [batch, time, width]; `mask` of 0 and -inf, [batch, 1, time, time]; undefined: each token sees all before it.
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mask, LayerCache* cache,
                        double dropout) {
    const int64_t batch = x.size(0), time = x.size(1), width = x.size(2);
    const auto parts = project(c_attn_, x).view({batch, time, 3, heads_, width / heads_}).unbind(2);
    torch::Tensor keys = parts[1].transpose(1, 2), values = parts[2].transpose(1, 2);
    if (cache != nullptr) std::tie(keys, values) = cache->extend(keys, values, /*window=*/0);
    const auto mixed = at::scaled_dot_product_attention(
        parts[0].transpose(1, 2), keys, values, mask.defined() ? std::optional(mask) : std::nullopt,
        dropout, /*is_causal=*/!mask.defined() && keys.size(2) == time);
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
      : c_fc_(register_module("c_fc", linear(config.n_embd, 4 * config.n_embd, true))),
        c_proj_(register_module("c_proj", linear(4 * config.n_embd, config.n_embd, true))) {}

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

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mask, LayerCache* cache,
                        const DropoutRates& dropout) {
    const torch::Tensor attended =
        x + dropped(attn_(ln_1_(x), mask, cache, dropout.attention), dropout.residuals);
    return attended + dropped(mlp_(ln_2_(attended)), dropout.residuals);
  }

 private:
  torch::nn::LayerNorm ln_1_;
  Attention attn_;
  torch::nn::LayerNorm ln_2_;
  Mlp mlp_;
};
TORCH_MODULE(Block);

}  // namespace

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
      config_.initial_deviation / std::sqrt(2.0 * static_cast<double>(config_.n_layer));
  for (auto& parameter : named_parameters()) {
    const std::string_view name = parameter.key();
    torch::Tensor& values = parameter.value();
    if (values.dim() == 1) {
      values.fill_(name.ends_with("ln_1.weight") || name.ends_with("ln_2.weight") ||
                   name == "ln_f.weight");
    } else {
      values.normal_(
          0, name.ends_with("c_proj.weight") ? residual_deviation : config_.initial_deviation,
          generator);
    }
  }
}

torch::Tensor Gpt2Impl::hidden(const torch::Tensor& tokens, const torch::Tensor& positions,
                               KeyValueCache* cache, const PassDropout& dropout) {
  const bool has_borders = positions.defined();
  const torch::Tensor mask =
      additive(has_borders ? document_mask(positions) : torch::Tensor(), wte_->weight);
  const int64_t past = cache == nullptr ? 0 : cache->length;
  torch::Tensor x =
      wte_(tokens) +
      wpe_(has_borders ? positions : at::arange(past, past + tokens.size(1), tokens.options()));
  x = dropped(x, dropout.begin(/*part=*/0, x.device()).embeddings);
  int64_t part = 0;
  for (const auto& module : *h_) {
    auto* const block = module->as<Block>();
    LayerCache* const cached = layer_of(cache, part++);
    x = run_block(
        [block, mask, cached, dropout, part](const torch::Tensor& input) {
          return block->forward(input, mask, cached, dropout.begin(part, input.device()));
        },
        x);
  }
  return ln_f_(x);
}

}  // namespace fusedbun::model

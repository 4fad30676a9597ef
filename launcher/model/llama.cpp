#include "fusedbun/launcher/model/llama.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/utils.h>

#include <string_view>
#include <tuple>
#include <utility>

#include "fusedbun/launcher/model/linear.h"

namespace fusedbun::model {
namespace {

using torch::Tensor;

class RmsNormImpl : public torch::nn::Module {
 public:
  RmsNormImpl(int64_t width, double epsilon)
      : epsilon_(epsilon), weight_(register_parameter("weight", torch::ones({width}))) {}
  Tensor forward(const Tensor& x) { return at::rms_norm(x, weight_.sizes(), weight_, epsilon_); }

 private:
  double epsilon_;
  Tensor weight_;
};
TORCH_MODULE(RmsNorm);

/// What the layers of one forward pass share.
struct Positions {
  Tensor cosine, sine;  ///< [time, head_width]
  /// Who sees whom, as 0 and -inf, [time, time] or [batch, 1, time, time]; undefined: each token all before it.
  Tensor mask, windowed_mask;
};

// x [batch, heads, time, head_width]: element i and i + half are a pair, turned by the angle of its position.
Tensor rotated(const Tensor& x, const Positions& positions) {
  const int64_t half = x.size(-1) / 2;
  const Tensor turned = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, /*dim=*/-1);
  return x * positions.cosine + turned * positions.sine;
}

class LlamaAttentionImpl : public torch::nn::Module {
 public:
  explicit LlamaAttentionImpl(const LlamaConfig& config)
      : config_(config),
        q_proj_(register_module(
            "q_proj", linear(config.width, config.heads * config.head_width, config.qkv_bias))),
        k_proj_(register_module(
            "k_proj", linear(config.width, config.kv_heads * config.head_width, config.qkv_bias))),
        v_proj_(register_module(
            "v_proj", linear(config.width, config.kv_heads * config.head_width, config.qkv_bias))),
        o_proj_(register_module(
            "o_proj", linear(config.heads * config.head_width, config.width, config.output_bias))) {
    if (!config.qk_norm) return;
    q_norm_ = register_module("q_norm", RmsNorm(config.head_width, config.norm_epsilon));
    k_norm_ = register_module("k_norm", RmsNorm(config.head_width, config.norm_epsilon));
  }

  Tensor forward(const Tensor& x, const Positions& positions, bool is_windowed, LayerCache* cache,
                 double dropout) {
    Tensor queries = heads_of(project(q_proj_, x), config_.heads);
    Tensor keys = heads_of(project(k_proj_, x), config_.kv_heads);
    if (config_.qk_norm) queries = q_norm_(queries), keys = k_norm_(keys);
    keys = rotated(keys.transpose(1, 2), positions);
    Tensor values = heads_of(project(v_proj_, x), config_.kv_heads).transpose(1, 2);
    if (cache != nullptr)
      std::tie(keys, values) = cache->extend(keys, values, is_windowed ? config_.window : 0);
    const Tensor& mask = is_windowed ? positions.windowed_mask : positions.mask;
    const Tensor mixed = at::scaled_dot_product_attention(
        rotated(queries.transpose(1, 2), positions), keys, values,
        mask.defined() ? std::optional(mask) : std::nullopt, dropout,
        /*is_causal=*/!mask.defined() && keys.size(2) == x.size(1), /*scale=*/std::nullopt,
        /*enable_gqa=*/config_.heads != config_.kv_heads);
    return project(o_proj_, mixed.transpose(1, 2).flatten(2));
  }

 private:
  // [batch, time, heads, head_width]
  Tensor heads_of(const Tensor& x, int64_t heads) const {
    return x.view({x.size(0), x.size(1), heads, config_.head_width});
  }

  LlamaConfig config_;
  torch::nn::Linear q_proj_, k_proj_, v_proj_, o_proj_;
  RmsNorm q_norm_{nullptr}, k_norm_{nullptr};
};
TORCH_MODULE(LlamaAttention);

class LlamaMlpImpl : public torch::nn::Module {
 public:
  explicit LlamaMlpImpl(const LlamaConfig& config)
      : gate_proj_(
            register_module("gate_proj", linear(config.width, config.mlp_width, config.mlp_bias))),
        up_proj_(
            register_module("up_proj", linear(config.width, config.mlp_width, config.mlp_bias))),
        down_proj_(register_module("down_proj",
                                   linear(config.mlp_width, config.width, config.mlp_bias))) {}

  Tensor forward(const Tensor& x) {
    return project(down_proj_, at::silu(project(gate_proj_, x)) * project(up_proj_, x));
  }

 private:
  torch::nn::Linear gate_proj_, up_proj_, down_proj_;
};
TORCH_MODULE(LlamaMlp);

class LlamaLayerImpl : public torch::nn::Module {
 public:
  LlamaLayerImpl(const LlamaConfig& config, bool is_windowed)
      : is_windowed_(is_windowed),
        input_layernorm_(
            register_module("input_layernorm", RmsNorm(config.width, config.norm_epsilon))),
        self_attn_(register_module("self_attn", LlamaAttention(config))),
        post_attention_layernorm_(register_module("post_attention_layernorm",
                                                  RmsNorm(config.width, config.norm_epsilon))),
        mlp_(register_module("mlp", LlamaMlp(config))) {}

  Tensor forward(const Tensor& x, const Positions& positions, LayerCache* cache,
                 const DropoutRates& dropout) {
    const Tensor attended =
        x + self_attn_(input_layernorm_(x), positions, is_windowed_, cache, dropout.attention);
    return attended + mlp_(post_attention_layernorm_(attended));
  }

 private:
  bool is_windowed_;
  RmsNorm input_layernorm_;
  LlamaAttention self_attn_;
  RmsNorm post_attention_layernorm_;
  LlamaMlp mlp_;
};
TORCH_MODULE(LlamaLayer);

/// "model" in Hugging Face's names.
class LlamaBodyImpl : public torch::nn::Module {};
TORCH_MODULE(LlamaBody);

}  // namespace

LlamaImpl::LlamaImpl(const LlamaConfig& config, uint64_t seed) : config_(config) {
  validate(config);
  LlamaBody body;
  register_module("model", body);
  embed_tokens_ =
      body->register_module("embed_tokens", torch::nn::Embedding(config.vocab, config.width));
  layers_ = body->register_module("layers", torch::nn::ModuleList());
  for (int64_t i = 0; i < config.layers; ++i) {
    const bool is_windowed =
        config.window > 0 && !config.is_windowed.empty() && config.is_windowed[i];
    layers_->push_back(LlamaLayer(config, is_windowed));
  }
  norm_ = body->register_module("norm", RmsNorm(config.width, config.norm_epsilon));
  if (!config.tied)
    lm_head_ = register_module("lm_head", linear(config.width, config.vocab, /*bias=*/false));
  initialise(seed);
}

void LlamaImpl::initialise(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (auto& parameter : named_parameters()) {
    Tensor& values = parameter.value();
    if (values.dim() == 1) {
      values.fill_(parameter.key().ends_with("bias") ? 0 : 1);
    } else {
      values.normal_(0, config_.initial_deviation, generator);
    }
  }
}

std::pair<Tensor, Tensor> LlamaImpl::angles(int64_t past, int64_t time,
                                            const torch::TensorOptions& options) const {
  const Tensor frequencies = at::tensor(rotary_frequencies(config_), at::kFloat);
  const Tensor angles = at::outer(at::arange(past, past + time, at::kFloat), frequencies);
  const Tensor both = at::cat({angles, angles}, -1);
  const double factor =
      config_.rope.rule == RopeScaling::Rule::yarn ? config_.rope.attention_factor : 1;
  return {(both.cos() * factor).to(options), (both.sin() * factor).to(options)};
}

// Rotary positions tell distances alone, so they need not begin anew with a document; who sees whom does.
Tensor LlamaImpl::hidden(const Tensor& tokens, const Tensor& document_positions,
                         KeyValueCache* cache, const PassDropout& dropout) {
  const int64_t time = tokens.size(1);
  const int64_t past = cache == nullptr ? 0 : cache->length;
  Tensor x = embed_tokens_(tokens);
  Positions positions;
  std::tie(positions.cosine, positions.sine) = angles(past, time, x.options());
  if (document_positions.defined()) positions.mask = document_mask(document_positions);
  positions.windowed_mask = positions.mask;
  if (config_.window > 0 && config_.window < time) {
    const Tensor window =
        at::ones({time, time}, x.options().dtype(at::kBool)).tril().triu(1 - config_.window);
    positions.windowed_mask =
        positions.mask.defined() ? positions.mask.logical_and(window) : window;
  }
  const bool has_windows = !positions.windowed_mask.is_same(positions.mask);
  positions.mask = additive(positions.mask, x);
  positions.windowed_mask = has_windows ? additive(positions.windowed_mask, x) : positions.mask;
  int64_t part = 0;
  for (const auto& module : *layers_) {
    auto* const layer = module->as<LlamaLayer>();
    LayerCache* const cached = layer_of(cache, part++);
    x = run_block(
        [layer, positions, cached, dropout, part](const Tensor& input) {
          return layer->forward(input, positions, cached, dropout.begin(part, input.device()));
        },
        x);
  }
  return norm_->as<RmsNormImpl>()->forward(x);
}

Tensor LlamaImpl::head() const {
  return config_.tied ? embed_tokens_->weight : lm_head_->weight;
}

}  // namespace fusedbun::model

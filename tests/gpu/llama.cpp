#include "fusedbun/tests/gpu/llama.h"

#include <ATen/ATen.h>

#include <cmath>

#include "fusedbun/launcher/model/activation_checkpoint.h"

namespace fusedbun::gpu_check {
namespace {

using at::Tensor;

constexpr double kDeviation = 0.02;
constexpr double kRotaryBase = 10000;
constexpr double kNormEpsilon = 1e-5;

// x [batch, heads, time, size]: its halves turned by the angles of their position.
Tensor rotated(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine},
                 -1);
}

}  // namespace

Llama::Llama(const LlamaShape& shape, at::Device device, at::ScalarType type) : shape_(shape) {
  const auto options = at::TensorOptions(device).dtype(type);
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    parameters_.insert(name + ".weight",
                       at::empty({rows, columns}, options).normal_(0, kDeviation).requires_grad_());
  };
  const auto norm_weight = [&](const std::string& name) {
    parameters_.insert(name + ".weight", at::ones({shape.width}, options).requires_grad_());
  };
  const int64_t kv_width = shape.width / shape.heads * shape.kv_heads;
  matrix("model.embed_tokens", shape.vocab, shape.width);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer);
    norm_weight(prefix + ".input_layernorm");
    matrix(prefix + ".self_attn.q_proj", shape.width, shape.width);
    matrix(prefix + ".self_attn.k_proj", kv_width, shape.width);
    matrix(prefix + ".self_attn.v_proj", kv_width, shape.width);
    matrix(prefix + ".self_attn.o_proj", shape.width, shape.width);
    norm_weight(prefix + ".post_attention_layernorm");
    matrix(prefix + ".mlp.gate_proj", shape.mlp, shape.width);
    matrix(prefix + ".mlp.up_proj", shape.mlp, shape.width);
    matrix(prefix + ".mlp.down_proj", shape.width, shape.mlp);
  }
  norm_weight("model.norm");
  matrix("lm_head", shape.vocab, shape.width);
}

Tensor Llama::norm(const Tensor& x, const std::string& name) const {
  return at::rms_norm(x, {shape_.width}, weight(name + ".weight"), kNormEpsilon);
}

Tensor Llama::heads_of(const Tensor& x, const std::string& name, int64_t heads) const {
  return at::linear(x, weight(name + ".weight"))
      .view({x.size(0), x.size(1), heads, shape_.width / shape_.heads})
      .transpose(1, 2);
}

Tensor Llama::block(const Tensor& x, const std::string& prefix, const Tensor& cosine,
                    const Tensor& sine) const {
  const Tensor before = norm(x, prefix + ".input_layernorm");
  const Tensor mixed = at::scaled_dot_product_attention(
      rotated(heads_of(before, prefix + ".self_attn.q_proj", shape_.heads), cosine, sine),
      rotated(heads_of(before, prefix + ".self_attn.k_proj", shape_.kv_heads), cosine, sine),
      heads_of(before, prefix + ".self_attn.v_proj", shape_.kv_heads), /*attn_mask=*/{},
      /*dropout_p=*/0, /*is_causal=*/true, /*scale=*/std::nullopt,
      /*enable_gqa=*/shape_.heads != shape_.kv_heads);
  const Tensor attended = x + at::linear(mixed.transpose(1, 2).reshape(x.sizes()),
                                         weight(prefix + ".self_attn.o_proj.weight"));
  const Tensor between = norm(attended, prefix + ".post_attention_layernorm");
  const Tensor gated = at::silu(at::linear(between, weight(prefix + ".mlp.gate_proj.weight"))) *
                       at::linear(between, weight(prefix + ".mlp.up_proj.weight"));
  return attended + at::linear(gated, weight(prefix + ".mlp.down_proj.weight"));
}

Tensor Llama::loss(const Tensor& tokens, const Tensor& targets) const {
  const int64_t size = shape_.width / shape_.heads;
  const auto float32 = tokens.options().dtype(at::kFloat);
  const Tensor frequencies = at::pow(kRotaryBase, at::arange(0, size, 2, float32) / -size);
  const Tensor angles = at::outer(at::arange(tokens.size(1), float32), frequencies);
  const Tensor& embedding = weight("model.embed_tokens.weight");
  const Tensor cosine = angles.cos().to(embedding.scalar_type());
  const Tensor sine = angles.sin().to(embedding.scalar_type());
  Tensor x = at::embedding(embedding, tokens);
  for (int64_t layer = 0; layer < shape_.layers; ++layer) {
    x = model::checkpointed([this, prefix = "model.layers." + std::to_string(layer), cosine, sine](
                                const Tensor& input) { return block(input, prefix, cosine, sine); },
                            x);
  }
  const Tensor logits = at::linear(norm(x, "model.norm"), weight("lm_head.weight"));
  return at::cross_entropy_loss(logits.to(at::kFloat).flatten(0, 1), targets.flatten());
}

}  // namespace fusedbun::gpu_check

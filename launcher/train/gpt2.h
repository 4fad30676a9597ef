#pragma once
// GPT-2's architecture (Radford et al., 2019) as LibTorch modules: learned positions, layer norm before attention and
// MLP, GELU with tanh, and an output layer tied to the token embedding. No dropout: a run is a function of its seed and
// data.
//
// Parameter names are those of Hugging Face's GPT2Model ("h.0.attn.c_attn.weight"); linear weights are [out, in] as
// LibTorch has them (hf_gpt2.h transposes at the border).
//
// Thread safety: as torch::nn::Module: one thread at a time.
#include <torch/nn/module.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>

#include "fusedbun/launcher/train/gpt2_config.h"

namespace fusedbun::train {

/// How a forward pass runs.
struct ForwardOptions {
  /// The type of matrix products under autocast, on whichever device the model is; none: the parameters' type.
  std::optional<c10::ScalarType> autocast = {};
  /// Blocks are computed once more in backward (activation_checkpoint.h); no bit of a gradient differs.
  bool checkpoints_activations = false;
};

class Gpt2Impl : public torch::nn::Module {
 public:
  /// Weights drawn from `seed` alone (normal, 0.02; layers that end in the residual stream 0.02 / sqrt(2·n_layer)), so
  /// they are the same on every rank.
  Gpt2Impl(const Gpt2Config& config, uint64_t seed);

  /// Of all forward passes from here on.
  void set_forward(const ForwardOptions& options) { forward_ = options; }
  /// `tokens` [batch, time <= n_ctx], int64, each below vocab; returns logits [batch, time, vocab], in the type of autocast or else of
  /// the parameters.
  torch::Tensor forward(const torch::Tensor& tokens);
  /// Mean cross entropy in nats of `targets` [batch, time] given `tokens`; a float32 scalar, whatever the model's type.
  torch::Tensor loss(const torch::Tensor& tokens, const torch::Tensor& targets);

  const Gpt2Config& config() const { return config_; }
  int64_t parameter_count() const;

 private:
  void initialise(uint64_t seed);

  Gpt2Config config_;
  ForwardOptions forward_;
  torch::nn::Embedding wte_{nullptr}, wpe_{nullptr};
  torch::nn::ModuleList h_;
  torch::nn::LayerNorm ln_f_{nullptr};
};
TORCH_MODULE(Gpt2);

}  // namespace fusedbun::train

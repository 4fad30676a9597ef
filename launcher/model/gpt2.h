#pragma once
// GPT-2's architecture (Radford et al., 2019) as LibTorch modules: learned positions, layer norm before attention and
// MLP, GELU with tanh, and an output layer tied to the token embedding. Dropout as in transformers: of the embeddings' sum, of attention's
// weights, and of what attention and MLP add.
//
// Parameter names are those of Hugging Face's GPT2Model ("h.0.attn.c_attn.weight"); linear weights are [out, in] as
// LibTorch has them (hf_weights.h transposes at the border).
//
// Thread safety: as torch::nn::Module: one thread at a time.
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/gpt2_config.h"

namespace fusedbun::model {

class Gpt2Impl : public CausalLm {
 public:
  /// Weights drawn from `seed` alone (normal, config.initial_deviation; in layers that end in the residual stream that / sqrt(2·n_layer)),
  /// so they are the same on every rank.
  Gpt2Impl(const Gpt2Config& config, uint64_t seed);

  const Gpt2Config& config() const { return config_; }
  int64_t context() const override { return config_.n_ctx; }
  int64_t vocab() const override { return config_.vocab; }
  DropoutRates dropout() const override { return config_.dropout; }

 protected:
  torch::Tensor hidden(const torch::Tensor& tokens, const torch::Tensor& positions,
                       KeyValueCache* cache, const PassDropout& dropout) override;
  torch::Tensor head() const override { return wte_->weight; }

 private:
  void initialise(uint64_t seed);

  Gpt2Config config_;
  torch::nn::Embedding wte_{nullptr}, wpe_{nullptr};
  torch::nn::ModuleList h_;
  torch::nn::LayerNorm ln_f_{nullptr};
};
TORCH_MODULE(Gpt2);

}  // namespace fusedbun::model

#pragma once
// The Llama family as LibTorch modules: RMSNorm before attention and MLP (Zhang and Sennrich, 2019), rotary positions (Su et al., 2021),
// grouped-query attention (Ainslie et al., 2023), SwiGLU (Shazeer, 2020). Llama 2 and 3 (Touvron et al., 2023), Mistral, Qwen2 and Qwen3 are
// flags of one model: biases, norms of queries and keys, windows, scaled positions, a tied output layer.
//
// Parameter names are those of Hugging Face's LlamaForCausalLM ("model.layers.0.self_attn.q_proj.weight"); weights are [out, in] there too.
//
// Thread safety: as torch::nn::Module: one thread at a time.
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/llama_config.h"

namespace fusedbun::model {

class LlamaImpl : public CausalLm {
 public:
  /// Weights drawn from `seed` alone (normal, config.initial_deviation; norms 1, biases 0), the same on every rank.
  LlamaImpl(const LlamaConfig& config, uint64_t seed);

  const LlamaConfig& config() const { return config_; }
  int64_t context() const override { return config_.context; }
  int64_t vocab() const override { return config_.vocab; }
  DropoutRates dropout() const override { return {.attention = config_.attention_dropout}; }

 protected:
  torch::Tensor hidden(const torch::Tensor& tokens, const torch::Tensor& document_positions,
                       KeyValueCache* cache, const PassDropout& dropout) override;
  torch::Tensor head() const override;

 private:
  void initialise(uint64_t seed);
  /// What turns the queries and keys of the `time` positions after the first `past`: cosine and sine, [time, head_width].
  std::pair<torch::Tensor, torch::Tensor> angles(int64_t past, int64_t time,
                                                 const torch::TensorOptions& options) const;

  LlamaConfig config_;
  torch::nn::Embedding embed_tokens_{nullptr};
  torch::nn::ModuleList layers_;
  std::shared_ptr<torch::nn::Module> norm_;
  torch::nn::Linear lm_head_{nullptr};  ///< null: tied
};
TORCH_MODULE(Llama);

}  // namespace fusedbun::model

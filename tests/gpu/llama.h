#pragma once
// Llama's architecture (Touvron et al., 2023): RMSNorm, rotary positions, grouped-query attention, SwiGLU, an output layer of its own. Every
// block is computed once more in backward (launcher/model/activation_checkpoint.h), so a model as large as the card's memory can be trained.
// Weights are random and made on the device, where they are needed: nothing of their size passes through the host.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>
#include <torch/ordered_dict.h>

#include <cstdint>
#include <string>

namespace fusedbun::gpu_check {

struct LlamaShape {
  int64_t layers = 60;
  int64_t width = 6656;
  int64_t mlp = 17920;
  int64_t heads = 52;    ///< divides width; width / heads is even
  int64_t kv_heads = 4;  ///< divides heads
  int64_t vocab = 32000;
};

class Llama {
 public:
  Llama(const LlamaShape& shape, at::Device device, at::ScalarType type);

  /// In order of registration, under Hugging Face's names.
  const torch::OrderedDict<std::string, at::Tensor>& parameters() const { return parameters_; }
  /// Mean cross entropy in nats of `targets` [batch, time] given `tokens`: a float32 scalar.
  at::Tensor loss(const at::Tensor& tokens, const at::Tensor& targets) const;

 private:
  const at::Tensor& weight(const std::string& name) const { return parameters_[name]; }
  at::Tensor norm(const at::Tensor& x, const std::string& name) const;
  at::Tensor heads_of(const at::Tensor& x, const std::string& name, int64_t heads) const;
  at::Tensor block(const at::Tensor& x, const std::string& prefix, const at::Tensor& cosine,
                   const at::Tensor& sine) const;

  LlamaShape shape_;
  torch::OrderedDict<std::string, at::Tensor> parameters_;
};

}  // namespace fusedbun::gpu_check

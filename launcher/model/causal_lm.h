#pragma once
// CausalLm: a language model that predicts the next token, as training, evaluation and generation see it. Gpt2 and Llama are such models.
//
// A model is its hidden states (everything up to the last norm) and its output layer, a matrix [vocab, width]. The loss takes both, so that
// the logits of a large vocabulary are never there whole (cross_entropy.h).
//
// Thread safety: as torch::nn::Module: one thread at a time.
#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <optional>

namespace fusedbun::model {

/// How a forward pass runs.
struct ForwardOptions {
  /// The type of matrix products under autocast, on whichever device the model is; none: the parameters' type.
  std::optional<c10::ScalarType> autocast = {};
  /// Blocks are computed once more in backward (activation_checkpoint.h); no bit of a gradient differs.
  bool checkpoints_activations = false;
};

class CausalLm : public torch::nn::Module {
 public:
  /// Of all forward passes from here on.
  void set_forward(const ForwardOptions& options) { forward_ = options; }

  /// `tokens` [batch, time <= context()], int64, each below vocab(); returns logits [batch, time, vocab], in the type of autocast or else
  /// of the parameters.
  torch::Tensor forward(const torch::Tensor& tokens);
  /// Mean cross entropy in nats of `targets` [batch, time] given `tokens`, over the targets that are not negative (NaN without one): a
  /// float32 scalar, whatever the model's type.
  torch::Tensor loss(const torch::Tensor& tokens, const torch::Tensor& targets);

  virtual int64_t context() const = 0;  ///< the longest sequence
  virtual int64_t vocab() const = 0;
  int64_t parameter_count() const;

 protected:
  /// [batch, time, width], normalised.
  virtual torch::Tensor hidden(const torch::Tensor& tokens) = 0;
  /// The output layer [vocab, width].
  virtual torch::Tensor head() const = 0;
  /// block(x), computed once more in backward if the options say so.
  torch::Tensor run_block(const std::function<torch::Tensor(const torch::Tensor&)>& block,
                          const torch::Tensor& x) const;

 private:
  torch::Tensor checked_hidden(const torch::Tensor& tokens);

  ForwardOptions forward_;
};

}  // namespace fusedbun::model

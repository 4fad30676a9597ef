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
#include <deque>
#include <functional>
#include <optional>
#include <utility>

#include "fusedbun/launcher/model/dropout.h"

namespace fusedbun::model {

/// How a forward pass runs.
struct ForwardOptions {
  /// The type of matrix products under autocast, on whichever device the model is; none: the parameters' type.
  std::optional<c10::ScalarType> autocast = {};
  /// Blocks are computed once more in backward (activation_checkpoint.h); no bit of a gradient differs.
  bool checkpoints_activations = false;
};

/// Keys and values that one layer has computed for a sequence so far, [batch, heads, time, head_width].
struct LayerCache {
  /// Adds those of further tokens, and returns what the newest of them sees: all, or the last `window` if that is not 0.
  std::pair<torch::Tensor, torch::Tensor> extend(const torch::Tensor& new_keys,
                                                 const torch::Tensor& new_values, int64_t window);

  torch::Tensor keys, values;
};

/// What a model remembers of a sequence, so that the next token costs one token's work.
struct KeyValueCache {
  int64_t length = 0;  ///< tokens
  std::deque<LayerCache> layers;
};
/// Null without a cache.
LayerCache* layer_of(KeyValueCache* cache, int64_t index);

class CausalLm : public torch::nn::Module {
 public:
  /// Of all forward passes from here on.
  void set_forward(const ForwardOptions& options) { forward_ = options; }

  /// `tokens` [batch, time <= context()], int64, each below vocab(); returns logits [batch, time, vocab], in the type of autocast or else
  /// of the parameters.
  torch::Tensor forward(const torch::Tensor& tokens);
  /// Cross entropy in nats of the `targets` [batch, time] that are not negative, given `tokens`: their mean (NaN without one), or with
  /// `divisor` their sum divided by it. A float32 scalar, whatever the model's type.
  /// `positions` [batch, time], int64: of each token in its document, 0 where one begins; no token sees those of another document.
  /// Undefined: a sequence is one document.
  /// With `dropout_seed` the model's dropout() acts, with masks that are a function of the seed, the shape of `tokens` and the device; the
  /// device's default generator is set, also in backward where blocks are computed once more. Without one there is no dropout.
  torch::Tensor loss(const torch::Tensor& tokens, const torch::Tensor& targets,
                     const torch::Tensor& positions = {}, std::optional<double> divisor = {},
                     std::optional<uint64_t> dropout_seed = {});

  /// Logits [batch, vocab], float32, of the token that follows `tokens` [batch, time]; those continue the sequence in `cache`, which takes
  /// them in. One token, unless the cache is empty; context() in all at most. Keeps nothing for backward.
  torch::Tensor next_logits(const torch::Tensor& tokens, KeyValueCache& cache);

  virtual int64_t context() const = 0;  ///< the longest sequence
  virtual int64_t vocab() const = 0;
  virtual DropoutRates dropout() const = 0;  ///< of training
  int64_t parameter_count() const;

 protected:
  /// [batch, time, width], normalised. `positions` as in loss(). With a cache, of tokens that continue its sequence, as in next_logits();
  /// then there are no positions.
  virtual torch::Tensor hidden(const torch::Tensor& tokens, const torch::Tensor& positions,
                               KeyValueCache* cache, const PassDropout& dropout) = 0;
  /// The output layer [vocab, width].
  virtual torch::Tensor head() const = 0;
  /// What attention adds to its logits, made once for all layers: 0 where `mask` is true, and -inf; in the type that attention on `x` computes
  /// with. An undefined mask stays so.
  torch::Tensor additive(const torch::Tensor& mask, const torch::Tensor& x) const;
  /// block(x), computed once more in backward if the options say so.
  torch::Tensor run_block(const std::function<torch::Tensor(const torch::Tensor&)>& block,
                          const torch::Tensor& x) const;

 private:
  torch::Tensor checked_hidden(const torch::Tensor& tokens, const torch::Tensor& positions,
                               std::optional<uint64_t> dropout_seed);

  ForwardOptions forward_;
};

/// Which tokens see which, bool [batch, 1, time, time]: those up to their own in their document. `positions` as in CausalLm::loss().
torch::Tensor document_mask(const torch::Tensor& positions);

}  // namespace fusedbun::model

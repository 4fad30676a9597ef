#include "fusedbun/launcher/model/causal_lm.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/activation_checkpoint.h"
#include "fusedbun/launcher/model/autocast.h"
#include "fusedbun/launcher/model/cross_entropy.h"

namespace fusedbun::model {

std::pair<torch::Tensor, torch::Tensor> LayerCache::extend(const torch::Tensor& new_keys,
                                                           const torch::Tensor& new_values,
                                                           int64_t window) {
  keys = keys.defined() ? at::cat({keys, new_keys}, 2) : new_keys;
  values = values.defined() ? at::cat({values, new_values}, 2) : new_values;
  // Several new tokens see different ones; the caller masks.
  const int64_t seen =
      window > 0 && new_keys.size(2) == 1 ? std::min(window, keys.size(2)) : keys.size(2);
  return {keys.narrow(2, keys.size(2) - seen, seen), values.narrow(2, keys.size(2) - seen, seen)};
}

LayerCache* layer_of(KeyValueCache* cache, int64_t index) {
  if (cache == nullptr) return nullptr;
  const auto place = static_cast<size_t>(index);
  if (cache->layers.size() <= place) cache->layers.resize(place + 1);
  return &cache->layers[place];
}

torch::Tensor CausalLm::checked_hidden(const torch::Tensor& tokens, const torch::Tensor& positions,
                                       std::optional<uint64_t> dropout_seed) {
  FUSEDBUN_ASSERT(tokens.dim() == 2 && tokens.size(1) <= context(),
                  "tokens must be [batch, time <= context]");
  FUSEDBUN_ASSERT(!positions.defined() || positions.sizes() == tokens.sizes(),
                  "every token has a position");
  return hidden(tokens, positions, /*cache=*/nullptr, PassDropout(dropout(), dropout_seed));
}

torch::Tensor CausalLm::forward(const torch::Tensor& tokens) {
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  return at::linear(checked_hidden(tokens, {}, {}), head());
}

torch::Tensor CausalLm::loss(const torch::Tensor& tokens, const torch::Tensor& targets,
                             const torch::Tensor& positions, std::optional<double> divisor,
                             std::optional<uint64_t> dropout_seed) {
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  return linear_cross_entropy(checked_hidden(tokens, positions, dropout_seed).flatten(0, 1), head(),
                              targets.flatten(), kLogitBytes, divisor);
}

torch::Tensor CausalLm::next_logits(const torch::Tensor& tokens, KeyValueCache& cache) {
  const int64_t time = tokens.size(1);
  FUSEDBUN_ASSERT(time == 1 || (time > 1 && cache.length == 0),
                  "a sequence is continued by one token at a time");
  FUSEDBUN_ASSERT(cache.length + time <= context(), "a sequence is no longer than the context");
  const torch::NoGradGuard no_grad;
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  const torch::Tensor last =
      hidden(tokens, /*positions=*/{}, &cache, PassDropout({}, {})).select(1, time - 1);
  cache.length += time;
  return at::linear(last, head()).to(at::kFloat);
}

int64_t CausalLm::parameter_count() const {
  int64_t count = 0;
  for (const torch::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

torch::Tensor CausalLm::additive(const torch::Tensor& mask, const torch::Tensor& x) const {
  if (!mask.defined()) return mask;
  const at::ScalarType type = forward_.autocast.value_or(x.scalar_type());
  return at::zeros(mask.sizes(), x.options().dtype(type))
      .masked_fill_(mask.logical_not(), -std::numeric_limits<double>::infinity());
}

torch::Tensor CausalLm::run_block(const std::function<torch::Tensor(const torch::Tensor&)>& block,
                                  const torch::Tensor& x) const {
  return forward_.checkpoints_activations ? checkpointed(block, x) : block(x);
}

torch::Tensor document_mask(const torch::Tensor& positions) {
  const torch::Tensor index = at::arange(positions.size(1), positions.options());
  const torch::Tensor begins = index - positions;  // [batch, time]: equal within a document
  const torch::Tensor same = begins.unsqueeze(2).eq(begins.unsqueeze(1));
  return same.logical_and_(index.unsqueeze(1).ge(index)).unsqueeze(1);
}

}  // namespace fusedbun::model

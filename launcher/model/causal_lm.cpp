#include "fusedbun/launcher/model/causal_lm.h"

#include <ATen/ATen.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/activation_checkpoint.h"
#include "fusedbun/launcher/model/autocast.h"
#include "fusedbun/launcher/model/cross_entropy.h"

namespace fusedbun::model {

torch::Tensor CausalLm::checked_hidden(const torch::Tensor& tokens,
                                       const torch::Tensor& positions) {
  FUSEDBUN_ASSERT(tokens.dim() == 2 && tokens.size(1) <= context(),
                  "tokens must be [batch, time <= context]");
  FUSEDBUN_ASSERT(!positions.defined() || positions.sizes() == tokens.sizes(),
                  "every token has a position");
  return hidden(tokens, positions);
}

torch::Tensor CausalLm::forward(const torch::Tensor& tokens) {
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  return at::linear(checked_hidden(tokens, {}), head());
}

torch::Tensor CausalLm::loss(const torch::Tensor& tokens, const torch::Tensor& targets,
                             const torch::Tensor& positions, std::optional<double> divisor) {
  std::optional<Autocast> autocast;
  if (forward_.autocast) autocast.emplace(tokens.device().type(), *forward_.autocast);
  return linear_cross_entropy(checked_hidden(tokens, positions).flatten(0, 1), head(),
                              targets.flatten(), kLogitBytes, divisor);
}

int64_t CausalLm::parameter_count() const {
  int64_t count = 0;
  for (const torch::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
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

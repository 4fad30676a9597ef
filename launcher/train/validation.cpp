#include "fusedbun/launcher/train/validation.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/train/across_ranks.h"

namespace fusedbun::train {

Batch make_batch(int64_t sequences, int64_t context, torch::Device device,
                 const std::function<void(int64_t, std::span<int64_t>)>& fill) {
  torch::Tensor tokens = at::empty({sequences, context + 1}, at::kLong);
  for (int64_t i = 0; i < sequences; ++i) {
    fill(i, {tokens.data_ptr<int64_t>() + i * (context + 1), static_cast<size_t>(context) + 1});
  }
  tokens = tokens.to(device);
  return {tokens.narrow(1, 0, context), tokens.narrow(1, 1, context)};
}

double validation_loss(model::CausalLm& model, const data::TextData& text,
                       const ValidationOptions& options, comm::Communicator& host) {
  const torch::NoGradGuard no_grad;
  const torch::Device device = model.parameters()[0].device();
  const int64_t available = text.validation_samples(options.context);
  const int64_t sequences = std::min(options.sequences_max, available);
  const int64_t begin = sequences * host.rank() / host.size();
  const int64_t end = sequences * (host.rank() + 1) / host.size();
  double sum = 0;
  for (int64_t first = begin; first < end; first += options.sequences_per_pass) {
    const int64_t count = std::min(options.sequences_per_pass, end - first);
    const Batch batch =
        make_batch(count, options.context, device, [&](int64_t i, std::span<int64_t> tokens) {
          text.validation_sample((first + i) * available / sequences, tokens);
        });
    sum += model.loss(batch.tokens, batch.targets).item<double>() * static_cast<double>(count);
  }
  return sum_over_ranks(host, {sum})[0] / static_cast<double>(sequences);
}

}  // namespace fusedbun::train

#include "fusedbun/launcher/train/validation.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/train/across_ranks.h"

namespace fusedbun::train {

Batch make_batch(int64_t sequences, int64_t context, torch::Device device,
                 const std::function<void(int64_t, const data::Sequence&)>& fill) {
  Batch batch{at::empty({sequences, context}, at::kLong),
              at::empty({sequences, context}, at::kLong),
              at::empty({sequences, context}, at::kLong)};
  const auto row = [&](const torch::Tensor& of, int64_t i) {
    return std::span(of.data_ptr<int64_t>() + i * context, static_cast<size_t>(context));
  };
  bool has_borders = false;
  for (int64_t i = 0; i < sequences; ++i) {
    const data::Sequence sequence{row(batch.tokens, i), row(batch.targets, i),
                                  row(batch.positions, i)};
    fill(i, sequence);
    has_borders |= sequence.positions.back() != context - 1;
    batch.predicted +=
        std::ranges::count_if(sequence.targets, [](int64_t target) { return target >= 0; });
  }
  batch.tokens = batch.tokens.to(device);
  batch.targets = batch.targets.to(device);
  batch.positions = has_borders ? batch.positions.to(device) : torch::Tensor();
  return batch;
}

LossSum validation_pass(model::CausalLm& model, const data::Corpus& corpus, int64_t count,
                        const std::function<int64_t(int64_t i)>& sample) {
  const torch::NoGradGuard no_grad;
  const Batch batch = make_batch(count, corpus.context(), model.parameters()[0].device(),
                                 [&](int64_t i, const data::Sequence& sequence) {
                                   corpus.validation_sample(sample(i), sequence);
                                 });
  if (batch.predicted == 0) return {};
  const auto predicted = static_cast<double>(batch.predicted);
  const torch::Tensor mean = model.loss(batch.tokens, batch.targets, batch.positions);
  return {mean.item<double>() * predicted, predicted};
}

double validation_loss(model::CausalLm& model, const data::Corpus& corpus,
                       const ValidationOptions& options, comm::Communicator& host) {
  const int64_t available = corpus.validation_samples();
  const int64_t sequences = std::min(options.sequences_max, available);
  const int64_t begin = sequences * host.rank() / host.size();
  const int64_t end = sequences * (host.rank() + 1) / host.size();
  LossSum sum;
  for (int64_t first = begin; first < end; first += options.sequences_per_pass) {
    sum += validation_pass(model, corpus, std::min(options.sequences_per_pass, end - first),
                           [&](int64_t i) { return (first + i) * available / sequences; });
  }
  const std::vector<double> sums = sum_over_ranks(host, {sum.nats, sum.predicted});
  return sums[0] / sums[1];
}

}  // namespace fusedbun::train

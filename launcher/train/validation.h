#pragma once
// The loss on text that training never sees: the same sequences at every call and every number of ranks.
//
// Thread safety: as the model and the communicator.
#include <torch/types.h>

#include <cstdint>
#include <functional>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/launcher/data/corpus.h"

namespace fusedbun::model {
class CausalLm;
}

namespace fusedbun::train {

/// Sequences as a model takes them; all [sequences, context], int64.
struct Batch {
  torch::Tensor tokens;
  torch::Tensor targets;    ///< what follows each; negative: nothing is predicted there
  torch::Tensor positions;  ///< in its document; undefined where each sequence is one document
  int64_t predicted = 0;    ///< targets that are not negative
};
/// `fill(i, sequence)` writes sequence i.
Batch make_batch(int64_t sequences, int64_t context, torch::Device device,
                 const std::function<void(int64_t, const data::Sequence&)>& fill);

struct ValidationOptions {
  int64_t sequences_max = 0;  ///< taken evenly from all that validate
  int64_t sequences_per_pass = 1;
};

/// Of cross entropies in nats.
struct LossSum {
  double nats = 0;
  double predicted = 0;  ///< tokens
  LossSum& operator+=(const LossSum& other) {
    nats += other.nats, predicted += other.predicted;
    return *this;
  }
};
/// Of `count` validation sequences, at once; `sample(i)` says which the i-th is.
LossSum validation_pass(model::CausalLm& model, const data::Corpus& corpus, int64_t count,
                        const std::function<int64_t(int64_t i)>& sample);

/// Mean cross entropy in nats per token. Collective; each rank computes its share.
double validation_loss(model::CausalLm& model, const data::Corpus& corpus,
                       const ValidationOptions& options, comm::Communicator& host);

}  // namespace fusedbun::train

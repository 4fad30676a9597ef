#pragma once
// The loss on text that training never sees: the same sequences at every call and every number of ranks.
//
// Thread safety: as the model and the communicator.
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <span>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/launcher/data/text_data.h"

namespace fusedbun::model {
class CausalLm;
}

namespace fusedbun::train {

/// Sequences as a model takes them.
struct Batch {
  torch::Tensor tokens;   ///< [sequences, context], int64
  torch::Tensor targets;  ///< the same, one byte later
};
/// `fill(i, tokens)` writes the context + 1 tokens of sequence i.
Batch make_batch(int64_t sequences, int64_t context, torch::Device device,
                 const std::function<void(int64_t, std::span<int64_t>)>& fill);

struct ValidationOptions {
  int64_t context = 0;
  int64_t sequences_max = 0;  ///< taken evenly from the whole validation text
  int64_t sequences_per_pass = 1;
};

/// Mean cross entropy in nats per token. Collective; each rank computes its share.
double validation_loss(model::CausalLm& model, const data::TextData& text,
                       const ValidationOptions& options, comm::Communicator& host);

}  // namespace fusedbun::train

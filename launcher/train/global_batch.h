#pragma once
// Which sequences of a global batch one rank computes, micro-step by micro-step. The global batch belongs to the job:
// its content does not depend on how many ranks share it.
//
// Thread safety: values.
#include <cstdint>

namespace fusedbun::train {

struct BatchShare {
  int64_t global_sequences = 0;  ///< per job step, all ranks
  int64_t micro_sequences = 0;   ///< per rank and backward pass
  int accumulation = 1;          ///< backward passes per job step
  int rank = 0;
  int world_size = 1;

  /// Index in the global batch of sequence `i` < micro_sequences of micro-step `micro_step`.
  int64_t index(int micro_step, int64_t i) const {
    return (static_cast<int64_t>(micro_step) * world_size + rank) * micro_sequences + i;
  }
};

/// Throws ConfigError, saying which sizes would fit, unless world size x accumulation divides the batch.
BatchShare share_of_batch(int64_t global_sequences, int accumulation, int rank, int world_size);

}  // namespace fusedbun::train

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

/// The seed of the dropout of one forward pass, of a run with `run_seed`: the one whose first sequence has index `first_sequence` in the
/// global batch of `job_step`. So what is left out is the same in a run that was stopped and goes on, and another in each pass and rank.
uint64_t dropout_seed(uint64_t run_seed, int64_t job_step, int64_t first_sequence);

/// Throws ConfigError, saying which sizes would fit, unless world size x accumulation divides the batch.
BatchShare share_of_batch(int64_t global_sequences, int accumulation, int rank, int world_size);

}  // namespace fusedbun::train

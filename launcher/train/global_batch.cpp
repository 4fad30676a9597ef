#include "fusedbun/launcher/train/global_batch.h"

#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/data/sample_order.h"

namespace fusedbun::train {

BatchShare share_of_batch(int64_t global_sequences, int accumulation, int rank, int world_size) {
  const int64_t parts = static_cast<int64_t>(accumulation) * world_size;
  if (global_sequences < 1 || global_sequences % parts != 0) {
    const int64_t below = global_sequences / parts * parts;
    throw ConfigError("batch = " + std::to_string(global_sequences) + ": " +
                      std::to_string(world_size) + " ranks x " + std::to_string(accumulation) +
                      " accumulation steps do not divide it; " +
                      (below > 0 ? std::to_string(below) + " or " : "") +
                      std::to_string(below + parts) + " would fit");
  }
  return {global_sequences, global_sequences / parts, accumulation, rank, world_size};
}

uint64_t dropout_seed(uint64_t run_seed, int64_t job_step, int64_t first_sequence) {
  using data::mixed;
  constexpr uint64_t kPurpose = 0x64726F706F7574;  // another sequence than that of the samples
  const uint64_t of_step = mixed(mixed(run_seed ^ kPurpose) ^ static_cast<uint64_t>(job_step));
  return mixed(of_step ^ static_cast<uint64_t>(first_sequence));
}

}  // namespace fusedbun::train

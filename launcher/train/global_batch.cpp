#include "fusedbun/launcher/train/global_batch.h"

#include <string>

#include "fusedbun/core/error.h"

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

}  // namespace fusedbun::train

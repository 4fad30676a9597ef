#pragma once
// Dropout whose random numbers are a function of a forward pass's seed and of the part of the model alone: the default generator of the
// device is set before each part draws. So a part that is computed once more in backward (activation_checkpoint.h) draws the same, and a run
// that was stopped and goes on is to the bit the run that was not.
//
// Thread safety: as LibTorch's default generators, which are the process's: one forward or backward pass of a device at a time.
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <optional>

#include "fusedbun/launcher/model/dropout_rates.h"

namespace fusedbun::model {

/// The dropout of one forward pass. Without a seed, or where all rates are 0, there is none and no generator is touched.
class PassDropout {
 public:
  PassDropout(const DropoutRates& rates, std::optional<uint64_t> seed)
      : rates_(seed ? rates : DropoutRates()), seed_(seed.value_or(0)) {}

  /// What part `part` of the model has, 0 the embeddings, 1 the first block; its random operations on `device` must follow, in the same
  /// order each time.
  DropoutRates begin(int64_t part, c10::Device device) const;

 private:
  DropoutRates rates_;
  uint64_t seed_;
};

/// x, of whose values each is 0 with probability `rate` and else divided by 1 - rate. 0 draws nothing.
at::Tensor dropped(const at::Tensor& x, double rate);

}  // namespace fusedbun::model

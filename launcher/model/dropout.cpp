#include "fusedbun/launcher/model/dropout.h"

#include <ATen/Context.h>
#include <ATen/ops/dropout.h>

#include <mutex>

namespace fusedbun::model {

DropoutRates PassDropout::begin(int64_t part, c10::Device device) const {
  if (rates_.is_none()) return rates_;
  at::Generator generator = at::globalContext().defaultGenerator(device);
  const std::lock_guard lock(generator.mutex());
  generator.set_current_seed(seed_ + static_cast<uint64_t>(part));
  return rates_;
}

at::Tensor dropped(const at::Tensor& x, double rate) {
  return rate == 0 ? x : at::dropout(x, rate, /*train=*/true);
}

}  // namespace fusedbun::model

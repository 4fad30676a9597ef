#include "fusedbun/launcher/data/sample_order.h"

#include <algorithm>
#include <bit>

#include "fusedbun/core/error.h"

namespace fusedbun::data {
namespace {

// Four hide a block's structure (Luby and Rackoff, 1988); small domains have few bits a round.
constexpr uint64_t kRounds = 6;

}  // namespace

uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

SampleOrder::SampleOrder(int64_t samples, uint64_t seed)
    : samples_(samples),
      seed_(mixed(seed)),
      half_bits_(std::max(
          1, (static_cast<int>(std::bit_width(static_cast<uint64_t>(samples - 1))) + 1) / 2)) {
  FUSEDBUN_ASSERT(samples >= 1, "an order is one of samples");
}

SampleOrder::Place SampleOrder::at(int64_t index) const {
  const int64_t epoch = index / samples_;
  const uint64_t key = mixed(seed_ ^ static_cast<uint64_t>(epoch));
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  auto place = static_cast<uint64_t>(index % samples_);
  do {
    uint64_t left = place >> half_bits_, right = place & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (mixed(mixed(key ^ round) ^ right) & mask);
      left = right;
      right = next;
    }
    place = left << half_bits_ | right;
  } while (place >= static_cast<uint64_t>(samples_));
  return {epoch, static_cast<int64_t>(place)};
}

int64_t SampleOrder::drawn(int64_t epoch, int64_t bound) const {
  return static_cast<int64_t>(mixed(~mixed(seed_ ^ static_cast<uint64_t>(epoch))) %
                              static_cast<uint64_t>(bound));
}

}  // namespace fusedbun::data

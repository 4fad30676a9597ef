#pragma once
// SampleOrder: in which order a run sees its samples. Every epoch sees each sample once, in a different shuffle; where sample g of the run
// lies is a pure function of (seed, g), so the order is the same for any number of ranks, and a run that goes on needs no more than g.
//
// A shuffle without a table: a Feistel network over the smallest power of four that holds all samples, walked until it lands on one
// (Black and Rogaway, 2002: "Ciphers with arbitrary finite domains").
//
// Thread safety: a value; pure functions.
#include <cstdint>

namespace fusedbun::data {

/// splitmix64's finaliser (Steele, Lea, Flood 2014): a bijection that leaves no visible pattern.
uint64_t mixed(uint64_t x);

class SampleOrder {
 public:
  /// Of `samples` >= 1 in an epoch.
  SampleOrder(int64_t samples, uint64_t seed);

  int64_t samples() const { return samples_; }
  struct Place {
    int64_t epoch = 0;
    int64_t sample = 0;  ///< below samples
  };
  /// Of sample `index` of the run, which counts through all epochs.
  Place at(int64_t index) const;
  /// A number below `bound`, drawn for `epoch`.
  int64_t drawn(int64_t epoch, int64_t bound) const;

 private:
  int64_t samples_;
  uint64_t seed_;
  int half_bits_;
};

}  // namespace fusedbun::data

#pragma once
// Which token follows: temperature and nucleus sampling (Holtzman et al., 2020).
//
// Thread safety: pure functions.
#include <cstdint>
#include <span>
#include <vector>

namespace fusedbun::generate {

struct SamplingOptions {
  double temperature = 0.8;  ///< logits are divided by it; 0: always the likeliest token
  double top_p =
      0.95;  ///< of the likeliest tokens so many that they are this likely together; (0, 1]
};

/// Throws ConfigError naming the flag whose value cannot be.
void validate(const SamplingOptions& options);

struct Candidate {
  int64_t token;
  double probability;
};

/// The tokens that may follow, given logits [vocab], the likeliest first, of equal ones the lower id; their probabilities add up to 1.
/// Throws DataError if a logit is NaN or +inf.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

/// The candidate in whose share of [0, 1) `uniform` is.
int64_t choose(std::span<const Candidate> candidates, double uniform);

}  // namespace fusedbun::generate

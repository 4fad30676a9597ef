#pragma once
// How long a run is: in steps, in epochs of its samples, or in tokens.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fusedbun::train {

/// What was asked for: at most one of them, else 300 steps.
struct RunLength {
  std::optional<int64_t> steps = {};
  std::optional<double> epochs = {};
  std::optional<int64_t> tokens = {};
};

/// Throws ConfigError "--flag = value: ..." for a value out of range, and for two lengths at once.
void validate(const RunLength& length);

/// Of what a job step takes, and what there is to take it from.
struct SampleCounts {
  int64_t batch = 1;    ///< sequences of a job step, all ranks together
  int64_t context = 1;  ///< tokens of a sequence
  int64_t samples = 1;  ///< sequences of an epoch
};
/// At least 1. The last step of an epoch or of a number of tokens may go beyond it.
int64_t steps_of(const RunLength& length, const SampleCounts& counts);

/// "20.5M": k, M and G are 10^3, 10^6 and 10^9. Throws ConfigError.
int64_t parse_tokens(std::string_view text);

/// "625 steps: 2 epochs of 10,000 sequences, 20.5 M tokens".
std::string describe_length(int64_t steps, const SampleCounts& counts);

}  // namespace fusedbun::train

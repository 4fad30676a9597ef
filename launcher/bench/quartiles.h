#pragma once
// What a series of timings says. Pure.
//
// Thread safety: values.
#include <vector>

namespace fusedbun::bench {

/// Median and the quartiles beside it; of an empty series all 0.
struct Spread {
  double median = 0;
  double low = 0;   ///< a quarter of the values is below
  double high = 0;  ///< a quarter of the values is above
};
Spread spread_of(std::vector<double> values);

/// values[i] / peer[i], where both were taken one after the other: what was slow for one was slow for the other.
/// Asserts equal length.
std::vector<double> paired_ratios(const std::vector<double>& values,
                                  const std::vector<double>& peer);

}  // namespace fusedbun::bench

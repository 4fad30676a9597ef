#include "fusedbun/launcher/bench/quartiles.h"

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::bench {
namespace {

double at_fraction(const std::vector<double>& sorted, double fraction) {
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  return {at_fraction(values, 0.5), at_fraction(values, 0.25), at_fraction(values, 0.75)};
}

std::vector<double> paired_ratios(const std::vector<double>& values,
                                  const std::vector<double>& peer) {
  FUSEDBUN_ASSERT(values.size() == peer.size(), "paired series have one value each per round");
  std::vector<double> ratios;
  for (size_t i = 0; i < values.size(); ++i) ratios.push_back(values[i] / peer[i]);
  return ratios;
}

}  // namespace fusedbun::bench

#include "fusedbun/launcher/generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fusedbun/core/error.h"

namespace fusedbun::generate {

void validate(const SamplingOptions& options) {
  FUSEDBUN_REQUIRE(
      std::isfinite(options.temperature) && options.temperature >= 0, ConfigError,
      "--temperature = " + std::to_string(options.temperature) + ": must be 0 or more");
  FUSEDBUN_REQUIRE(
      options.top_p > 0 && options.top_p <= 1, ConfigError,
      "--top-p = " + std::to_string(options.top_p) + ": must be above 0 and at most 1");
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  const auto largest = std::ranges::max_element(logits);  // the first of equal ones
  const bool has_nan = std::ranges::any_of(logits, [](float logit) { return std::isnan(logit); });
  FUSEDBUN_REQUIRE(
      !has_nan && std::isfinite(*largest), DataError,
      "the model's logits are not finite: its weights are damaged, or too large for --precision");
  if (options.temperature == 0) return {{.token = largest - logits.begin(), .probability = 1}};
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const double below = (static_cast<double>(logits[i]) - *largest) / options.temperature;
    all[i] = {.token = static_cast<int64_t>(i), .probability = std::exp(below)};
  }
  std::ranges::stable_sort(all, std::greater<>(), &Candidate::probability);
  const auto total_of = [&all] {
    return std::accumulate(all.begin(), all.end(), 0.0, [](double sum, const Candidate& each) {
      return sum + each.probability;
    });
  };
  const double wanted = options.top_p * total_of();
  size_t kept = 0;
  for (double sum = 0; kept < all.size() && sum < wanted; ++kept) sum += all[kept].probability;
  all.resize(kept);
  const double total = total_of();
  for (Candidate& each : all) each.probability /= total;
  return all;
}

int64_t choose(std::span<const Candidate> candidates, double uniform) {
  for (const Candidate& each : candidates) {
    if (uniform < each.probability) return each.token;
    uniform -= each.probability;
  }
  return candidates.back().token;  // what rounding leaves
}

}  // namespace fusedbun::generate

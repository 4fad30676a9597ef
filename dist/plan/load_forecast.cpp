#include "fusedbun/dist/plan/load_forecast.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <utility>

namespace fusedbun::plan {
namespace {

/// Loads of ranks to which things are dealt out evenly, the first ones getting one more: kept as the steps between
/// neighbours, so that dealing takes the same time for any number of ranks.
class EvenLoads {
 public:
  explicit EvenLoads(int ranks) : ranks_(ranks), steps_(ranks + 1) {}

  /// Deals `total` things of `size` elements each.
  void deal(int64_t total, int64_t size) {
    const int64_t longer = total % ranks_;
    steps_[0] += total / ranks_ * size + (longer > 0 ? size : 0);
    if (longer > 0) steps_[longer] -= size;
  }
  std::vector<int64_t> loads() const {
    std::vector<int64_t> loads(ranks_);
    int64_t load = 0;
    for (int rank = 0; rank < ranks_; ++rank) loads[rank] = load += steps_[rank];
    return loads;
  }

 private:
  int64_t ranks_;
  std::vector<int64_t> steps_;
};

/// The least loaded rank first, of equal ones the lowest.
using LeastLoaded = std::priority_queue<std::pair<int64_t, int>,
                                        std::vector<std::pair<int64_t, int>>, std::greater<>>;

/// Gives `size` elements to each of the `count` least loaded ranks.
void give(LeastLoaded& ranks, int64_t count, int64_t size) {
  std::vector<std::pair<int64_t, int>> chosen;
  for (int64_t i = 0; i < count; ++i) {
    chosen.push_back(ranks.top());
    ranks.pop();
  }
  for (const auto& [load, rank] : chosen) ranks.emplace(load + size, rank);
}

}  // namespace

LoadForecast::LoadForecast(std::span<const ParameterSpec> parameters, int64_t bucket_bytes)
    : parameters_(parameters) {
  // Which parameters share a bucket does not depend on the number of ranks, only over how many more a large one is spread.
  const ShardPlan one = make_plan(parameters, {.bucket_bytes = bucket_bytes});
  for (int b = 0; b < static_cast<int>(one.buckets.size()); ++b) {
    std::map<int, int64_t> packs;  // by group
    for (const int parameter : one.buckets[b].parameters) {
      const ParameterSpec& spec = parameters[parameter];
      if (spec.is_vector()) {
        packs[spec.group] += spec.elements();
      } else if (one.buckets_of[parameter].begin == b) {
        matrices_.push_back(parameter);
      }
    }
    for (const auto& [group, total] : packs) pack_totals_.push_back(total);
  }
  std::ranges::stable_sort(matrices_, std::ranges::greater{},
                           [&](int parameter) { return parameters_[parameter].elements(); });
}

std::vector<int64_t> LoadForecast::loads(const PlanOptions& options) {
  EvenLoads even(options.world_size);
  for (const int64_t total : pack_totals_) even.deal(total, 1);
  std::vector<std::pair<int64_t, int64_t>> placed;  // copies, elements of each
  for (const int parameter : matrices_) {
    const ParameterSpec& spec = parameters_[parameter];
    const int64_t stacked = spec.stacked_matrices();
    if (slice_of(spec, options) == SliceKind::row_sharded) {
      even.deal(spec.rows(), spec.columns());
    } else if (stacked == 0) {
      placed.emplace_back(1, spec.elements());
    } else if (stacked >= options.world_size) {
      even.deal(stacked, spec.elements() / stacked);
    } else {
      placed.emplace_back(stacked, spec.elements() / stacked);
    }
  }
  operations_ += static_cast<int64_t>(matrices_.size() + pack_totals_.size()) + options.world_size;
  std::vector<int64_t> loads = even.loads();
  if (placed.empty()) return loads;

  std::vector<std::pair<int64_t, int>> ranks;
  for (int rank = 0; rank < options.world_size; ++rank) ranks.emplace_back(loads[rank], rank);
  LeastLoaded least(std::greater<>{}, std::move(ranks));
  for (const auto& [copies, size] : placed) {
    give(least, copies, size);
    operations_ += copies;
  }
  for (; !least.empty(); least.pop()) loads[least.top().second] = least.top().first;
  return loads;
}

double imbalance_of(std::span<const int64_t> loads) {
  int64_t total = 0;
  for (const int64_t load : loads) total += load;
  if (total == 0) return 0;
  const double average = static_cast<double>(total) / static_cast<double>(loads.size());
  return static_cast<double>(std::ranges::max(loads)) / average - 1;
}

}  // namespace fusedbun::plan

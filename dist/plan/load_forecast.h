#pragma once
// LoadForecast: how many elements each rank would own under other options, by arithmetic: no segments are made, so all
// smaller worlds can be tried before a sentence is printed.
//
// Invariant: loads(options) is make_plan(parameters, options).load. Thread safety: none.
#include <cstdint>
#include <span>
#include <vector>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {

class LoadForecast {
 public:
  /// Of all parameters planned at once with buckets of that size. Keeps a view of `parameters`.
  LoadForecast(std::span<const ParameterSpec> parameters, int64_t bucket_bytes);

  /// [rank] elements owned. `options.bucket_bytes` is that of the constructor.
  std::vector<int64_t> loads(const PlanOptions& options);
  /// Ranks and parameters looked at so far: what it costs, for a test.
  int64_t operations() const { return operations_; }

 private:
  std::span<const ParameterSpec> parameters_;
  std::vector<int> matrices_;         ///< by elements, largest first, then in the order of buckets
  std::vector<int64_t> pack_totals_;  ///< elements of each bucket's vectors of one group
  int64_t operations_ = 0;
};

/// How much more than the average the busiest rank owns: 0.02 is 2 %.
double imbalance_of(std::span<const int64_t> loads);

}  // namespace fusedbun::plan

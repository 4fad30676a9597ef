#pragma once
// BucketLaunchOrder: which bucket leaves when. Gradients become ready in any order; buckets leave in the
// plan's order on every rank, so the collectives match. It returns what to do and does nothing
// itself.
//
// Invariants: 1. Each bucket leaves exactly once per step. 2. Bucket b leaves only after buckets
// 0..b-1. 3. A bucket leaves when all its parameters are ready, or at `flush`. 4. A spread parameter is ready in all its buckets.
//
// Thread safety: none; the engine holds its lock.
#include <cstdint>
#include <vector>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {

class BucketLaunchOrder {
 public:
  explicit BucketLaunchOrder(const ShardPlan& plan);

  /// Starts a job step: nothing is ready. Takes over buckets appended to the plan since.
  void begin_step(const ShardPlan& plan);
  /// Takes over buckets appended to the plan in the middle of a step: none of their parameters is ready.
  void extend(const ShardPlan& plan);
  /// Marks a parameter ready; returns the buckets that may leave now, in order. `ready` twice in
  /// one step returns nothing and changes nothing.
  std::vector<int> ready(int parameter);
  /// The buckets that have not left, in order: they leave with zeros for what is missing.
  std::vector<int> flush();
  /// The next bucket that has not left leaves, whatever is missing.
  int flush_one();
  int started() const { return next_; }  ///< buckets that have left

  bool is_ready(int parameter) const { return ready_[parameter]; }
  bool has_left(int bucket) const { return bucket < next_; }

 private:
  std::vector<BucketRange> buckets_of_;  ///< [parameter]
  std::vector<int> size_;                ///< [bucket] parameters
  std::vector<int> waiting_;             ///< [bucket] parameters not yet ready
  std::vector<bool> ready_;              ///< [parameter]
  int next_ = 0;                         ///< first bucket that has not left
  std::vector<int> take_ready();
};

}  // namespace fusedbun::plan

#include "fusedbun/dist/plan/bucket_launch_order.h"

#include "fusedbun/core/error.h"

namespace fusedbun::plan {

BucketLaunchOrder::BucketLaunchOrder(const ShardPlan& plan) {
  begin_step(plan);
}

void BucketLaunchOrder::begin_step(const ShardPlan& plan) {
  extend(plan);
  waiting_ = size_;
  ready_.assign(buckets_of_.size(), false);
  next_ = 0;
}

void BucketLaunchOrder::extend(const ShardPlan& plan) {
  // What was there never changes; only what was appended is new.
  buckets_of_.insert(buckets_of_.end(),
                     plan.buckets_of.begin() + static_cast<std::ptrdiff_t>(buckets_of_.size()),
                     plan.buckets_of.end());
  for (size_t bucket = size_.size(); bucket < plan.buckets.size(); ++bucket) {
    size_.push_back(static_cast<int>(plan.buckets[bucket].parameters.size()));
    waiting_.push_back(size_.back());
  }
  ready_.resize(buckets_of_.size());
}

std::vector<int> BucketLaunchOrder::ready(int parameter) {
  FUSEDBUN_ASSERT(parameter >= 0 && static_cast<size_t>(parameter) < ready_.size(),
                  "parameter " + std::to_string(parameter) + " is not in the schedule");
  if (ready_[parameter]) return {};
  ready_[parameter] = true;
  const BucketRange& buckets = buckets_of_[parameter];
  for (int bucket = buckets.begin; bucket < buckets.end; ++bucket) --waiting_[bucket];
  return take_ready();
}

std::vector<int> BucketLaunchOrder::flush() {
  std::vector<int> leaving;
  while (next_ < static_cast<int>(size_.size())) leaving.push_back(next_++);
  return leaving;
}

int BucketLaunchOrder::flush_one() {
  FUSEDBUN_ASSERT(next_ < static_cast<int>(size_.size()), "every bucket has left");
  return next_++;
}

std::vector<int> BucketLaunchOrder::take_ready() {
  std::vector<int> leaving;
  while (next_ < static_cast<int>(size_.size()) && waiting_[next_] == 0) leaving.push_back(next_++);
  return leaving;
}

}  // namespace fusedbun::plan

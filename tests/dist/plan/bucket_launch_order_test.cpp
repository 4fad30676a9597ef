#include "fusedbun/dist/plan/bucket_launch_order.h"

#include <numeric>

#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

constexpr int kModels = 2000;

/// The rule, read anew at every event: the longest run of buckets from the front whose parameters are all ready.
int leaving_prefix(const ShardPlan& plan, const std::vector<bool>& ready) {
  int bucket = 0;
  for (; bucket < static_cast<int>(plan.buckets.size()); ++bucket) {
    for (int parameter : plan.buckets[bucket].parameters) {
      if (!ready[parameter]) return bucket;
    }
  }
  return bucket;
}

/// Buckets first, first + 1, ..., last - 1.
std::vector<int> run(int first, int last) {
  std::vector<int> buckets(last - first);
  std::iota(buckets.begin(), buckets.end(), first);
  return buckets;
}

/// One step: parameters in random order, some twice, some never.
void check_step(Random& random, const ShardPlan& plan, BucketLaunchOrder& schedule) {
  std::vector<int> events(plan.parameters.size());
  std::iota(events.begin(), events.end(), 0);
  const size_t repeated = events.size() / 3;
  for (size_t i = 0; i < repeated; ++i)
    events.push_back(events[between(random, 0, events.size() - 1)]);
  std::shuffle(events.begin(), events.end(), random);
  if (chance(random, 0.5)) events.resize(between(random, 0, events.size()));

  std::vector<bool> ready(plan.parameters.size());
  int left = 0;
  for (int parameter : events) {
    const bool again = ready[parameter];
    ready[parameter] = true;
    const int now = leaving_prefix(plan, ready);
    EXPECT_EQ(schedule.ready(parameter), run(left, now));
    EXPECT_TRUE(!again || left == now) << "a second time lets nothing leave";
    left = now;
    EXPECT_TRUE(schedule.is_ready(parameter));
    for (int bucket = 0; bucket < static_cast<int>(plan.buckets.size()); ++bucket) {
      EXPECT_EQ(schedule.has_left(bucket), bucket < left);
    }
  }
  EXPECT_EQ(schedule.flush(), run(left, static_cast<int>(plan.buckets.size())));
  EXPECT_TRUE(schedule.flush().empty());
}

TEST(ScheduleRandom, BucketsLeaveOnceAndInOrder) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int model = 0; model < kModels && !testing::Test::HasFailure(); ++model) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " model " + std::to_string(model));
    ShardPlan plan = make_plan(random_model(random, "p", 20), random_plan_options(random));
    BucketLaunchOrder schedule(plan);
    for (int step = 0; step < 3; ++step) {
      check_step(random, plan, schedule);
      if (chance(random, 0.3)) plan.append(random_model(random, std::to_string(step) + ".", 5));
      schedule.begin_step(plan);
    }
  }
}

TEST(Schedule, HoldsABucketBackUntilTheOnesBeforeItHaveLeft) {
  const std::vector<ParameterSpec> parameters = {{"0", {1}}, {"1", {1}}, {"2", {1}}};
  BucketLaunchOrder schedule(
      make_plan(parameters, {.bucket_bytes = 1}));  // bucket b holds parameter 2 - b
  EXPECT_TRUE(schedule.ready(0).empty());
  EXPECT_EQ(schedule.ready(2), (std::vector<int>{0}));
  EXPECT_EQ(schedule.ready(1), (std::vector<int>{1, 2}));
  EXPECT_TRUE(schedule.flush().empty());
}

TEST(Schedule, TakesAGradientThatComesAfterTheFlush) {
  const std::vector<ParameterSpec> parameters = {{"0", {1}}, {"1", {1}}};
  const ShardPlan plan = make_plan(parameters, {.bucket_bytes = 1});
  BucketLaunchOrder schedule(plan);
  EXPECT_EQ(schedule.flush(), (std::vector<int>{0, 1}));
  EXPECT_TRUE(schedule.ready(1).empty());
  EXPECT_TRUE(schedule.is_ready(1));
  schedule.begin_step(plan);
  EXPECT_FALSE(schedule.is_ready(1));
  EXPECT_EQ(schedule.ready(1), (std::vector<int>{0}));
}

TEST(ScheduleDeathTest, DoesNotKnowParametersBeyondThePlan) {
  BucketLaunchOrder schedule(make_plan(std::vector<ParameterSpec>{{"0", {1}}}, {}));
  EXPECT_DEATH(schedule.ready(1), "parameter 1 is not in the schedule");
}

}  // namespace
}  // namespace fusedbun::plan

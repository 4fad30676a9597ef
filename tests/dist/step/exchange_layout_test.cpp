// Where segments lie when they are packed or left where they are: against the header's words, over random models.
#include "fusedbun/dist/step/exchange_layout.h"

#include <limits>
#include <set>

#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun {
namespace {

void expect_as_said(const plan::Bucket& bucket, int64_t in_place_bytes) {
  constexpr int64_t kElementBytes = 4;
  const ExchangeLayout layout = lay_out_exchange(bucket, kElementBytes, in_place_bytes);
  int64_t packed_before = 0;
  for (size_t rank = 0; rank < bucket.segments.size(); ++rank) {
    std::set<int64_t> taken;
    int64_t packed = 0;
    for (size_t i = 0; i < bucket.segments[rank].size(); ++i) {
      const int64_t elements = bucket.segments[rank][i].range.elements();
      const bool is_short = elements * kElementBytes < in_place_bytes;
      EXPECT_EQ(layout.packs(static_cast<int>(rank), i), is_short);
      if (is_short) packed += elements;
      for (int64_t e = 0; e < elements; ++e) {
        EXPECT_TRUE(taken.insert(layout.places[rank][i] + e).second) << "two segments in one place";
      }
    }
    EXPECT_EQ(layout.packed[rank], packed);
    EXPECT_EQ(layout.packed_begins[rank], packed_before);
    EXPECT_EQ(std::ssize(taken), bucket.counts[rank]);
    if (!taken.empty()) {
      EXPECT_EQ(*taken.begin(), 0);
      EXPECT_EQ(*taken.rbegin(), bucket.counts[rank] - 1);
    }
    packed_before += packed;
  }
  EXPECT_EQ(layout.packed_total, packed_before);
}

TEST(ExchangeLayout, PacksShortSegmentsFirstAndLeavesNoGap) {
  plan::Random random(plan::test_seed());
  for (int k = 0; k < 500; ++k) {
    const auto model = plan::random_model(random, "p", 12);
    const plan::ShardPlan plan = plan::make_plan(model, plan::random_plan_options(random));
    for (const plan::Bucket& bucket : plan.buckets) {
      for (const int64_t in_place_bytes :
           {int64_t{0}, plan::between(random, 1, 300), std::numeric_limits<int64_t>::max()}) {
        expect_as_said(bucket, in_place_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace fusedbun

// How the memory of buckets is laid out: against the headers' words, over random models.

#include <limits>
#include <set>

#include "fusedbun/dist/step/collective_bucket.h"
#include "fusedbun/dist/step/point_to_point_bucket.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun {
namespace {

void expect_as_said(const plan::Bucket& bucket, int64_t in_place_bytes) {
  constexpr int64_t kElementBytes = 4;
  const PackedLayout layout = lay_out_packed(bucket, kElementBytes, in_place_bytes);
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

TEST(PackedLayout, PacksShortSegmentsFirstAndLeavesNoGap) {
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

TEST(PortionLayout, PadsToOneLengthUnlessThatCostsTooMuch) {
  plan::Random random(plan::test_seed());
  int padded = 0, unpadded = 0;
  for (int k = 0; k < 2000; ++k) {
    plan::Bucket bucket;
    const int64_t ranks = plan::between(random, 1, 8);
    const int64_t size = plan::between(random, 1, 40'000);
    for (int64_t r = 0; r < ranks; ++r) {
      bucket.counts.push_back(plan::chance(random, 0.8) ? size + plan::between(random, 0, 200)
                                                        : plan::between(random, 0, size));
      bucket.offsets.push_back(r == 0 ? 0 : bucket.offsets.back() + bucket.counts[r - 1]);
    }
    const int64_t elements = bucket.offsets.back() + bucket.counts.back();
    int64_t length = 0;  // the longest portion, to whole cache lines
    for (const int64_t count : bucket.counts) length = std::max(length, (count + 31) / 32 * 32);
    const bool pads = length * ranks - elements <= elements / 8 + 1024 * ranks;
    (pads ? padded : unpadded) += 1;

    const PortionLayout layout = lay_out_portions(bucket);
    int64_t begin = 0;
    for (int64_t r = 0; r < ranks; ++r) {
      EXPECT_EQ(layout.begins[r], begin);
      EXPECT_EQ(layout.counts[r], pads ? length : bucket.counts[r]);
      begin += layout.counts[r];
    }
    EXPECT_EQ(layout.elements, begin);
  }
  EXPECT_GT(padded, 100);
  EXPECT_GT(unpadded, 100);
}

}  // namespace
}  // namespace fusedbun

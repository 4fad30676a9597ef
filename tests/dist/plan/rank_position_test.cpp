#include "fusedbun/dist/plan/rank_position.h"

#include <gtest/gtest.h>

namespace fusedbun::plan {
namespace {

TEST(RankPosition, comes_back_from_its_word) {
  for (const int64_t job_step :
       {int64_t{0}, int64_t{1}, int64_t{123'456'789}, (int64_t{1} << 40) - 1}) {
    for (const int bucket : {RankPosition::kNoBucket, 0, 1, 300, RankPosition::kBucketMax}) {
      for (uint8_t number = 0; find_phase(number); ++number) {
        const RankPosition position{job_step, *find_phase(number), bucket};
        EXPECT_EQ(unpack(pack(position)), position) << describe(position);
      }
    }
  }
}

TEST(RankPosition, is_told_as_the_nearest_that_fits) {
  const RankPosition far{int64_t{1} << 50, Phase::update, 1 << 20};
  EXPECT_EQ(unpack(pack(far)),
            (RankPosition{(int64_t{1} << 40) - 1, Phase::update, RankPosition::kBucketMax}));
}

TEST(RankPosition, of_a_fresh_word_is_the_start) {
  EXPECT_EQ(unpack(0), RankPosition{});
  EXPECT_EQ(unpack(0xFF).phase, Phase::starting);  // a phase of a later version
}

TEST(RankPosition, is_described_in_words) {
  EXPECT_EQ(describe({41, Phase::reduce_scatter, 3}), "reduce_scatter of bucket 3, job step 41");
  EXPECT_EQ(describe({0, Phase::starting}), "starting, job step 0");
}

}  // namespace
}  // namespace fusedbun::plan

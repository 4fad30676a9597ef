#include "fusedbun/dist/plan/step_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

namespace fusedbun::plan {
namespace {

using testing::HasSubstr;
using testing::Optional;

std::vector<StepHeader> equal_headers(size_t ranks) {
  std::vector<StepHeader> headers(ranks);
  for (size_t rank = 0; rank < ranks; ++rank) {
    headers[rank] = {.job_step = 40,
                     .active_revision = 3,
                     .chain_hash = 0xabc,
                     .state_digest = 0xdef,
                     .skipped_steps = 1,
                     .rank = static_cast<uint32_t>(rank)};
  }
  return headers;
}

TEST(StepHeader, EqualHeadersAgree) {
  for (size_t ranks : {1, 2, 5}) EXPECT_EQ(disagreement(equal_headers(ranks)), std::nullopt);
}

TEST(StepHeader, SomeFieldsMayDiffer) {
  auto headers = equal_headers(3);
  headers[0].newest_revision = 9;
  headers[1].flags = StepHeader::kLeaving;
  EXPECT_EQ(disagreement(headers), std::nullopt);
}

TEST(StepHeader, EachFieldIsNamedWithBothRanks) {
  const auto sentence = [](const std::function<void(StepHeader&)>& spoil) {
    auto headers = equal_headers(3);
    spoil(headers[2]);
    return disagreement(headers).value_or("they agree");
  };
  EXPECT_EQ(sentence([](StepHeader& h) { h.job_step = 41; }),
            "rank 2 is in job step 41 where rank 0 is in 40");
  EXPECT_EQ(sentence([](StepHeader& h) { h.active_revision = 4; }),
            "rank 2 uses revision 4 where rank 0 uses 3");
  EXPECT_EQ(sentence([](StepHeader& h) { h.chain_hash = 1; }),
            "rank 2 has change chain 0x0000000000000001 where rank 0 has 0x0000000000000abc");
  EXPECT_EQ(sentence([](StepHeader& h) { h.skipped_steps = 2; }),
            "rank 2 has skipped steps 2 where rank 0 has 1");
  EXPECT_EQ(sentence([](StepHeader& h) { h.state_digest = 1; }),
            "rank 2 has state digest 0x0000000000000001 where rank 0 has 0x0000000000000def");
}

TEST(StepHeader, TheMajorityIsRight) {
  auto headers = equal_headers(4);
  headers[0].job_step = 39;
  EXPECT_EQ(disagreement(headers), "rank 0 is in job step 39 where rank 1 is in 40");
  headers[3].job_step = 41;
  EXPECT_EQ(disagreement(headers),
            "rank 0 is in job step 39, rank 3 is in 41 where rank 1 is in 40");
}

TEST(StepHeader, BetweenTwoTheLowerRankIsBelieved) {
  auto headers = equal_headers(2);
  headers[0].job_step = 39;
  EXPECT_EQ(disagreement(headers), "rank 1 is in job step 40 where rank 0 is in 39");
}

TEST(StepHeader, TheFirstCauseIsNamed) {
  auto headers = equal_headers(2);
  headers[1].state_digest = 1;
  headers[1].job_step = 41;
  EXPECT_THAT(disagreement(headers), Optional(HasSubstr("job step")));
}

TEST(StepHeader, ManyRanksAreCounted) {
  auto headers = equal_headers(40);
  for (size_t rank = 0; rank < 12; ++rank) headers[rank].job_step = 41;
  EXPECT_THAT(disagreement(headers),
              Optional(HasSubstr("rank 7 is in 41 and 4 more differ where rank 12 is in 40")));
}

TEST(StepHeader, AHeaderInTheWrongPlaceIsNamed) {
  auto headers = equal_headers(3);
  std::swap(headers[1], headers[2]);
  EXPECT_EQ(disagreement(headers), "the step header in the place of rank 1 was sent by rank 2");
}

}  // namespace
}  // namespace fusedbun::plan

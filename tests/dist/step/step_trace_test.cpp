#include "fusedbun/dist/step/step_trace.h"

#include <gtest/gtest.h>

namespace fusedbun {
namespace {

TEST(StepTrace, PhasesFollowOneAnotherWithoutGaps) {
  StepTrace trace;
  trace.enter({.job_step = 3, .phase = plan::Phase::update, .bucket = 1});
  trace.enter({.job_step = 3, .phase = plan::Phase::all_gather, .bucket = 0});
  trace.finish();
  trace.finish();  // nothing is under way
  ASSERT_EQ(trace.spans().size(), 2u);
  const StepTrace::Span& first = trace.spans()[0];
  EXPECT_EQ(first.name, "update");
  EXPECT_EQ(first.bucket, 1);
  EXPECT_EQ(first.job_step, 3);
  EXPECT_EQ(first.track, StepTrace::Track::rank);
  EXPECT_LE(first.begin, first.end);
  EXPECT_LE(first.end, trace.spans()[1].begin);
  EXPECT_TRUE(trace.complete());
}

TEST(StepTrace, KeepsAMillionSpansAndSaysWhenThereWereMore) {
  StepTrace trace;
  for (int i = 0; i < 1'000'000; ++i) trace.add({.name = "x"});
  EXPECT_TRUE(trace.complete());
  trace.add({.name = "one too many"});
  EXPECT_FALSE(trace.complete());
  EXPECT_EQ(trace.spans().size(), 1'000'000u);
}

}  // namespace
}  // namespace fusedbun

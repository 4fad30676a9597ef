#include "fusedbun/launcher/control/watch_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;
using control::v1::Job;
using control::v1::MetricsSample;
using control::v1::Rank;
using ::testing::Contains;
using ::testing::HasSubstr;

MetricsSample sample(int64_t step) {
  MetricsSample sample;
  sample.set_step(step);
  auto& values = *sample.mutable_values();
  values["loss"] = 5.0 / static_cast<double>(step + 1);
  values["tokens_per_second"] = 13'200;
  values["learning_rate/default"] = step < 50 ? 1e-3 : 3e-4;
  values["lr_scale"] = 0.5;
  values["step_seconds"] = 0.0312;
  values["gradients_seconds"] = 0.024;
  values["optimizer_seconds"] = 0.007;
  return sample;
}

WatchView a_job(int ranks) {
  WatchView view;
  view.where = "runs/a";
  view.job.emplace();
  view.job->set_state(Job::RUNNING);
  view.job->set_step(1234);
  view.job->set_total_steps(5000);
  view.job->set_world_size(ranks);
  view.job->set_backend("gloo");
  for (int64_t step = 0; step < 100; ++step) view.add(sample(step));
  Change change;
  change.set_revision(1);
  change.set_state(Change::APPLIED);
  change.set_effective_step(50);
  change.set_actor("uid:0");
  change.set_reason("loss is flat");
  auto* patch = change.add_patches();
  patch->set_group("*");
  patch->mutable_values()->set_learning_rate(3e-4);
  view.changes.push_back(change);
  for (int rank = 0; rank < ranks; ++rank) {
    Rank each;
    each.set_rank(rank);
    each.set_host("node" + std::to_string(rank));
    each.set_liveness(rank == 1 ? Rank::LATE : Rank::ALIVE);
    each.set_phase("all_gather");
    each.set_bucket(2);
    view.ranks.push_back(each);
  }
  return view;
}

TEST(WatchView, ShowsStateNumbersCurveChangesAndRanks) {
  const std::vector<std::string> lines = render(a_job(2), {.columns = 100, .lines = 30});
  EXPECT_THAT(lines[0],
              HasSubstr("runs/a  RUNNING  step 1,234 of 5,000 (25 %)  2 ranks over gloo"));
  EXPECT_THAT(lines, Contains("loss 0.0500   13.2 k tokens/s   lr 0.0003 (scale 0.5)"));
  EXPECT_THAT(lines, Contains("step 31.2 ms: forward and backward 24.0, optimizer 7.0"));
  EXPECT_THAT(lines, Contains(HasSubstr("     lr  ██")));
  EXPECT_THAT(lines, Contains(HasSubstr("└─────────────────────────────────────────────▲────")));
  EXPECT_THAT(lines, Contains(HasSubstr("▲ 1  step 50  APPLIED  lr=3e-04  uid:0  loss is flat")));
  EXPECT_THAT(lines, Contains(HasSubstr("1     LATE   none yet   0     all_gather 2  node1")));
  EXPECT_EQ(lines.back(), "q quits");
}

TEST(WatchView, FitsEveryTerminal) {
  for (const int ranks : {1, 3, 200}) {
    const WatchView view = a_job(ranks);
    for (int columns = 1; columns <= 200; columns += 7) {
      for (int lines = 1; lines <= 60; lines += 3) {
        const auto screen = render(view, {columns, lines});
        EXPECT_LE(screen.size(), static_cast<size_t>(std::max(lines, 2)));
        for (const std::string& line : screen)
          EXPECT_LE(width_of(line), static_cast<size_t>(columns));
        EXPECT_EQ(screen.back(), cut("q quits", static_cast<size_t>(columns)));
      }
    }
  }
}

TEST(WatchView, BeforeTheFirstStepThereIsNothingToDraw) {
  WatchView view;
  view.where = "runs/a";
  const auto lines = render(view, {80, 24});
  EXPECT_EQ(lines[0], "runs/a");
  EXPECT_THAT(lines, Contains(HasSubstr("no step has ended yet")));
}

TEST(WatchView, ALongPastIsThinnedNotForgotten) {
  WatchView view;
  for (int64_t step = 0; step < 100'000; ++step) view.add(sample(step));
  EXPECT_LT(view.losses.size(), 10'000U);
  EXPECT_EQ(view.losses.front().step, 0);
  EXPECT_EQ(view.losses.back().step, 99'999);
  view.add(sample(5));
  EXPECT_EQ(view.losses.back().step, 99'999) << "steps only grow";
}

TEST(WatchView, ALine) {
  EXPECT_EQ(line_of(sample(120), 300),
            "step 121 of 300  loss 0.0413  lr 0.0003 (scale 0.5)  13.2 k tokens/s");
}

}  // namespace
}  // namespace fusedbun::launcher

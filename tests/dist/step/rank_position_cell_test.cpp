#include "fusedbun/dist/step/rank_position_cell.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

namespace fusedbun {
namespace {

using plan::Phase;

TEST(RankPositionCell, AddsUpTheTimeOfEachPhaseThatHasEnded) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  RankPositionCell board;
  const auto of = [&](Phase phase) { return board.phase_us()[static_cast<size_t>(phase)]; };
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
  pause();
  board.put({.job_step = 1, .phase = Phase::forward_backward});
  pause();
  board.enter(Phase::reduce_scatter);
  board.enter(Phase::forward_backward);
  pause();
  board.enter(Phase::idle);
  pause();
  EXPECT_GE(of(Phase::starting), 20'000);
  EXPECT_GE(of(Phase::forward_backward), 40'000);
  EXPECT_LT(of(Phase::reduce_scatter), of(Phase::forward_backward));
  EXPECT_EQ(of(Phase::idle), 0) << "it has not ended";
  EXPECT_EQ(of(Phase::validate), 0);
  board.enter(Phase::save);
  EXPECT_GE(of(Phase::idle), 20'000);
  const auto spent = board.phase_us();
  const auto whole =
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
  const int64_t sum = std::accumulate(spent.begin(), spent.end(), int64_t{0});
  EXPECT_GE(sum, 80'000);
  EXPECT_LE(sum, whole) << "no time is counted twice";
}

}  // namespace
}  // namespace fusedbun

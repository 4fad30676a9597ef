// One rank 0 and 1,023 others, as connections of this process over loopback: how long they take to join, what rank 0's thread costs.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <thread>

#include "fusedbun/core/descriptor_limit.h"
#include "ranks.h"

namespace fusedbun::health {
namespace {

constexpr int kWorld = 1024;
constexpr int kJoiners = 32;
/// Of the default: a beat each second.
constexpr int kSeconds = 3;

double cpu_seconds(int who) {
  rusage usage{};
  ::getrusage(who, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// What the other threads of this process use: rank 0's alone.
double cpu_seconds_of_others() {
  return cpu_seconds(RUSAGE_SELF) - cpu_seconds(RUSAGE_THREAD);
}

void join_all(Ranks& ranks, std::vector<std::unique_ptr<Connection>>& peers) {
  std::vector<std::thread> joiners;
  for (int first = 1; first <= kJoiners; ++first) {
    joiners.emplace_back([&ranks, &peers, first] {
      for (int rank = first; rank < kWorld; rank += kJoiners) {
        peers[static_cast<size_t>(rank)] = std::make_unique<Connection>(ranks.bare(rank));
      }
    });
  }
  for (std::thread& joiner : joiners) joiner.join();
}

TEST(ThousandRanks, JoinAndAreHeardAtLittleCost) {
  raise_descriptor_limit();
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < 2 * kWorld + 64)
    GTEST_SKIP() << "only " << limit.rlim_cur << " descriptors (ulimit -Hn)";
  Ranks ranks(kWorld, {.heartbeat_us = 1'000'000, .lost_us = 60'000'000, .stall_us = 60'000'000});
  std::vector<std::unique_ptr<Connection>> peers(kWorld);
  const auto start = std::chrono::steady_clock::now();
  join_all(ranks, peers);
  const std::chrono::duration<double> joined = std::chrono::steady_clock::now() - start;
  ranks.watch();
  ASSERT_TRUE(ranks.all_met());

  const double before = cpu_seconds_of_others();
  for (int second = 0; second < kSeconds; ++second) {
    const auto began = std::chrono::steady_clock::now();
    for (int rank = 1; rank < kWorld; ++rank) {
      peers[static_cast<size_t>(rank)]->send(Beat{{second, plan::Phase::all_gather, 1}, 0, 0});
      peers[static_cast<size_t>(rank)]->drain();
      // The beats of a job come at all times of a second.
      std::this_thread::sleep_until(began + rank * std::chrono::microseconds(1'000'000) / kWorld);
    }
  }
  const double cpu = (cpu_seconds_of_others() - before) / kSeconds;
  RecordProperty("join_seconds", std::to_string(joined.count()));
  std::printf("joined in %.2f s; rank 0's thread uses %.1f %% of a core\n", joined.count(),
              100 * cpu);
  EXPECT_LT(joined.count(), 5);
  EXPECT_LT(cpu, 0.15);  // without a pause between looks: 0.53
  for (const plan::RankStatus& rank : ranks[0].ranks())
    EXPECT_EQ(rank.liveness, plan::Liveness::alive);

  peers[777].reset();
  EXPECT_EQ(ranks.told_soon(0).rank, 777);
}

}  // namespace
}  // namespace fusedbun::health

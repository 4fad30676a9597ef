// What a job tells while it runs: events, metrics and ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/job_events.h"
#include "fusedbun/dist/control/metrics_streams.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using std::chrono::milliseconds;

v1::JobEvent warning(const std::string& sentence) {
  v1::JobEvent event;
  event.set_warning(sentence);
  return event;
}

TEST(JobEvents, AReaderGoesOnWithoutAGap) {
  JobEvents events;
  EXPECT_EQ(events.after(0, milliseconds(0)).outcome, JobEvents::Outcome::nothing);
  for (int i = 1; i <= 100; ++i) events.add(warning(std::to_string(i)));
  int64_t seen = 0;
  while (seen < 100) {
    const auto page = events.after(seen, milliseconds(0));
    ASSERT_EQ(page.outcome, JobEvents::Outcome::events);
    for (const auto& event : page.events) ASSERT_EQ(event.sequence(), ++seen);
  }
  EXPECT_EQ(events.after(seen, milliseconds(0)).outcome, JobEvents::Outcome::nothing);
  events.end();
  EXPECT_EQ(events.after(seen, milliseconds(0)).outcome, JobEvents::Outcome::ended);
}

TEST(JobEvents, WhatIsNoLongerKeptIsSaid) {
  JobEvents events;
  for (size_t i = 0; i < JobEvents::kKept + 10; ++i) events.add(warning(""));
  EXPECT_EQ(events.after(9, milliseconds(0)).outcome, JobEvents::Outcome::gone);
  EXPECT_EQ(events.after(10, milliseconds(0)).events.front().sequence(), 11);
  EXPECT_EQ(events.after(0, milliseconds(0)).events.front().sequence(), 11);
  EXPECT_EQ(events.after(100'000, milliseconds(0)).outcome, JobEvents::Outcome::gone);
  EXPECT_EQ(events.after(-1, milliseconds(0)).outcome, JobEvents::Outcome::gone);
}

TEST(JobEvents, OfAnotherAttemptAreGoneHoweverManyThereAre) {
  JobEvents first;
  for (int i = 0; i < 3; ++i) first.add(warning(""));
  JobEvents second;
  second.begin_attempt(1);
  EXPECT_EQ(second.after(0, milliseconds(0)).outcome, JobEvents::Outcome::nothing);
  for (int i = 0; i < 10; ++i) second.add(warning(""));
  EXPECT_EQ(second.after(3, milliseconds(0)).outcome, JobEvents::Outcome::gone) << "it has ten";
  const auto page = second.after(0, milliseconds(0));
  ASSERT_EQ(page.events.size(), 10U);
  EXPECT_EQ(second.after(page.events[3].sequence(), milliseconds(0)).events.size(), 6U);
  EXPECT_EQ(first.after(page.events[3].sequence(), milliseconds(0)).outcome,
            JobEvents::Outcome::gone);
}

TEST(MetricsStreams, ASlowReaderLosesTheOldest) {
  MetricsStreams streams;
  MetricsStreams::Reader slow(streams);
  for (int step = 0; step < 1000; ++step) {
    auto sample = std::make_shared<TimedSample>();
    sample->message.set_step(step);
    streams.publish(sample);
  }
  constexpr int kRing = MetricsStreams::kRing;
  for (int step = 1000 - kRing; step < 1000; ++step) {
    const auto next = slow.next(milliseconds(0));
    ASSERT_EQ(next.outcome, MetricsStreams::Reader::Outcome::sample);
    EXPECT_EQ(next.sample->message.step(), step);
    EXPECT_EQ(next.dropped, 1000 - kRing);
  }
  EXPECT_EQ(slow.next(milliseconds(0)).outcome, MetricsStreams::Reader::Outcome::nothing);
  MetricsStreams::Reader late(streams);
  EXPECT_EQ(late.next(milliseconds(0)).sample->message.step(), 1000 - kRing);
}

/// VmRSS of this process, in MiB: server and clients together.
int64_t resident_mib() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmRSS:")) return std::stoll(line.substr(6)) >> 10;
  }
  return 0;
}

class Streams : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  ControlServer server_{options_in(folder_.path()), two_group_job()};
  ControlClient client_{{.run_dir = folder_.path()}};
};

TEST_F(Streams, WatchTellsStatesWarningsAndLostRanks) {
  server_.set_state(JobState::running);
  server_.warn("the disk is nearly full");
  server_.report_lost_rank(
      {.rank = 1, .host = "node7", .pid = 4242, .liveness = plan::Liveness::lost});
  client_.stop("enough");
  std::vector<v1::JobEvent> events;
  client_.watch(0, [&](const v1::JobEvent& event) {
    events.push_back(event);
    return events.size() < 4;
  });
  EXPECT_EQ(events[0].job().state(), v1::Job::RUNNING);
  EXPECT_EQ(events[1].warning(), "the disk is nearly full");
  EXPECT_EQ(events[2].lost_rank().host(), "node7");
  EXPECT_EQ(events[2].lost_rank().liveness(), v1::Rank::LOST);
  EXPECT_EQ(events[3].job().state(), v1::Job::DRAINING);

  // From the middle on, to the end of the job.
  std::vector<int64_t> sequences;
  std::jthread ending;
  client_.watch(2, [&](const v1::JobEvent& event) {
    sequences.push_back(event.sequence());
    if (sequences.size() == 1) {
      ending = std::jthread([&] {
        server_.set_state(JobState::stopped);
        server_.shutdown();
      });
    }
    return true;
  });
  EXPECT_EQ(sequences, (std::vector<int64_t>{3, 4, 5}));
}

TEST_F(Streams, SamplesCarryWhatTheLoopAdds) {
  server_.set_state(JobState::running);
  changes::StepReport report{.job_step = 7, .active_revision = 3, .gradient_norm = 1.5};
  report.group_options = {preset("recommended", 2e-3), preset("compact", 1e-3)};
  server_.port().step_finished(report);
  const changes::Metric loss[] = {{"loss", 0.25}};
  server_.record_metrics(7, loss);
  v1::StreamMetricsRequest request;
  const auto first = [&] {
    v1::MetricsSample got;
    client_.stream_metrics(request, [&](const v1::MetricsSample& sample) {
      got = sample;
      return false;
    });
    return got;
  };
  const v1::MetricsSample all = first();
  EXPECT_EQ(all.step(), 7);
  EXPECT_EQ(all.config_revision(), 3);
  EXPECT_EQ(all.values().at("loss"), 0.25);
  EXPECT_EQ(all.values().at("gradient_norm"), 1.5);
  EXPECT_EQ(all.values().at("learning_rate/body"), 2e-3);
  request.add_metrics("loss");
  request.add_metrics("no such metric");
  EXPECT_EQ(first().values().size(), 1u);

  report.job_step = 8;  // a loop that adds nothing: its sample leaves with the end of the next step
  server_.port().step_finished(report);
  report.job_step = 9;
  server_.port().step_finished(report);
  request.set_from_step(8);
  EXPECT_EQ(first().step(), 8);
}

TEST_F(Streams, TheSeventeenthStreamIsRefused) {
  server_.set_state(JobState::running);
  const changes::StepReport report{.job_step = 0};
  server_.port().step_finished(report);
  server_.record_metrics(0, {});
  std::atomic<int> reading = 0;
  std::atomic<bool> enough = false;
  {
    std::vector<std::jthread> readers;
    for (int i = 0; i < 16; ++i) {
      readers.emplace_back([&] {
        client_.stream_metrics({}, [&](const v1::MetricsSample& sample) {
          if (sample.step() == 0) ++reading;
          return !enough;
        });
      });
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (reading < 16 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    ASSERT_EQ(reading, 16);
    EXPECT_THROW(client_.stream_metrics({}, [](const v1::MetricsSample&) { return true; }),
                 ConfigError);
    EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);  // other calls still find a thread
    enough = true;
    server_.port().step_finished({.job_step = 1});
    server_.record_metrics(1, {});
  }
}

TEST_F(Streams, ReadersThatDoNotReadHoldNobodyUp) {
  constexpr int kSlow = 4;
  constexpr int kSteps = 50'000;
  std::atomic<int> stuck = 0;
  std::atomic<bool> enough = false;
  std::atomic<int64_t> dropped = 0;
  std::vector<std::jthread> readers;
  for (int i = 0; i < 16; ++i) {
    readers.emplace_back([&, is_slow = i < kSlow] {
      ControlClient own({.run_dir = folder_.path()});  // a connection, and so a window, of its own
      bool has_waited = false;
      own.stream_metrics({}, [&](const v1::MetricsSample& sample) {
        if (is_slow && !std::exchange(has_waited, true)) {
          ++stuck;
          while (!enough) std::this_thread::sleep_for(milliseconds(1));
        }
        if (is_slow && sample.dropped() > 0) dropped = sample.dropped();
        return sample.step() + 1 < kSteps;
      });
    });
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(50);
  int step = 0;
  const auto do_step = [&] {
    const changes::Metric loss[] = {{"loss", 1.0 / (step + 1)}};
    server_.port().step_finished({.job_step = step});
    server_.record_metrics(step++, loss);
  };
  while (stuck < kSlow && std::chrono::steady_clock::now() < until) {
    do_step();
    std::this_thread::sleep_for(milliseconds(5));
  }
  ASSERT_EQ(stuck, kSlow);
  ASSERT_LT(step, kSteps / 2) << "most steps are measured";
  const int64_t before_mib = resident_mib();
  ASSERT_GT(before_mib, 0);
  std::vector<std::chrono::steady_clock::duration> times;
  while (step < kSteps) {
    const auto start = std::chrono::steady_clock::now();
    do_step();
    times.push_back(std::chrono::steady_clock::now() - start);
  }
  std::ranges::nth_element(times, times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2));
// Sanitizers have memory of their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LE(resident_mib() - before_mib, 64) << "MiB, with what the twelve others have in flight";
#endif
  // Of tens of thousands, so a machine that is busy does not move it.
  EXPECT_LT(times[times.size() / 2], milliseconds(1))
      << "microseconds, even if a client does not read";
  enough = true;
  readers.clear();
  EXPECT_GT(dropped, 1000);
}

TEST_F(Streams, MinIntervalLeavesSamplesOut) {
  for (int step = 0; step < 100; ++step) server_.port().step_finished({.job_step = step});
  v1::StreamMetricsRequest request;
  request.mutable_min_interval()->set_seconds(3600);
  std::vector<int64_t> steps;
  std::jthread ending;
  client_.stream_metrics(request, [&](const v1::MetricsSample& sample) {
    steps.push_back(sample.step());
    if (steps.size() == 1) ending = std::jthread([&] { server_.shutdown(); });
    return true;
  });
  EXPECT_EQ(steps, (std::vector<int64_t>{0}));
}

TEST_F(Streams, AnIntervalThatCannotBeIsRefused) {
  v1::StreamMetricsRequest request;
  for (const int64_t seconds : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    request.mutable_min_interval()->set_seconds(seconds);
    EXPECT_THROW(client_.stream_metrics(request, [](const v1::MetricsSample&) { return true; }),
                 ConfigError);
  }
}

/// Three ranks, the last of them late.
class ThreeRanks : public plan::RankDirectory {
 public:
  std::vector<plan::RankStatus> ranks() const override {
    return {{.rank = 0, .host = "a", .state_hash = 0x0102},
            {.rank = 1, .host = "b", .phase = plan::Phase::all_gather, .bucket = 2},
            {.rank = 2, .host = "c", .heartbeat_age_ms = 3500, .liveness = plan::Liveness::late}};
  }
};

/// Two ranks whose heartbeats come, rank 0 as it is told to be.
class Punctual : public plan::RankDirectory {
 public:
  std::vector<plan::RankStatus> ranks() const override {
    return {{.rank = 0, .liveness = liveness}, {.rank = 1, .liveness = liveness}};
  }
  std::atomic<plan::Liveness> liveness = plan::Liveness::alive;
};

TEST_F(Streams, OnlyALateOrLostRankDegradesTheJob) {
  server_.set_state(JobState::running);
  Punctual ranks;
  server_.set_ranks(&ranks);
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
  ranks.liveness = plan::Liveness::stalled;
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING) << "its heartbeats come";
  ranks.liveness = plan::Liveness::lost;
  EXPECT_EQ(client_.job().state(), v1::Job::DEGRADED);
  server_.set_ranks(nullptr);
}

TEST_F(Streams, WatchTellsWhenTheJobTurnsDegradedAndBack) {
  server_.set_state(JobState::running);
  Punctual ranks;
  server_.set_ranks(&ranks);
  std::vector<v1::Job::State> states;
  client_.watch(0, [&](const v1::JobEvent& event) {
    states.push_back(event.job().state());
    ranks.liveness = states.size() % 2 == 1 ? plan::Liveness::late : plan::Liveness::alive;
    return states.size() < 4;
  });
  EXPECT_EQ(states, (std::vector{v1::Job::RUNNING, v1::Job::DEGRADED, v1::Job::RUNNING,
                                 v1::Job::DEGRADED}));
  server_.set_ranks(nullptr);
}

TEST_F(Streams, ProgressIsWhatTheRanksSayOfRankZero) {
  server_.set_state(JobState::running);
  Punctual ranks;
  const auto turns = [&](ControlClient::Health expected) {
    for (const auto end = std::chrono::steady_clock::now() + milliseconds(10'000);
         std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(milliseconds(10))) {
      if (client_.health("fusedbun.progress") == expected) return true;
    }
    return false;
  };
  EXPECT_TRUE(turns(ControlClient::Health::not_serving)) << "no step has ended yet";
  server_.set_ranks(&ranks);
  EXPECT_TRUE(turns(ControlClient::Health::serving)) << "they start, or validate, and are no stall";
  ranks.liveness = plan::Liveness::stalled;
  EXPECT_TRUE(turns(ControlClient::Health::not_serving));
  server_.set_ranks(nullptr);
}

TEST_F(Streams, RanksComeInPagesAndALateOneDegradesTheJob) {
  server_.set_state(JobState::running);
  EXPECT_EQ(client_.ranks().ranks_size(), 0);
  const ThreeRanks ranks;
  server_.set_ranks(&ranks);
  v1::ListRanksRequest request;
  request.set_page_size(2);
  const auto first = client_.ranks(request);
  ASSERT_EQ(first.ranks_size(), 2);
  EXPECT_FALSE(first.ranks(0).has_heartbeat_age());
  EXPECT_EQ(first.ranks(0).state_hash(), std::string("\0\0\0\0\0\0\1\2", 8));
  EXPECT_EQ(first.ranks(1).phase(), "all_gather");
  EXPECT_EQ(first.ranks(1).bucket(), 2);
  request.set_page_token(first.next_page_token());
  const auto second = client_.ranks(request);
  ASSERT_EQ(second.ranks_size(), 1);
  EXPECT_EQ(second.next_page_token(), "");
  EXPECT_EQ(second.ranks(0).liveness(), v1::Rank::LATE);
  EXPECT_EQ(second.ranks(0).heartbeat_age().seconds(), 3);
  EXPECT_EQ(client_.job().state(), v1::Job::DEGRADED);
  server_.set_ranks(nullptr);
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
}

}  // namespace
}  // namespace fusedbun::control

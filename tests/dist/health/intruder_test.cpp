// What strangers do to the port on which rank 0 hears the others: through a real socket, with the token unknown. It costs the
// job nothing: no rank, no memory, no late beat.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <ctime>
#include <random>

#include "fusedbun/core/error.h"
#include "ranks.h"
#include "raw_socket.h"

namespace fusedbun::health {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// What the kernel may hold of a connection that nobody reads. A reader takes a hundred times as much in a second.
constexpr int64_t kKernelBytesMax = 16 << 20;

/// As frame.h describes it, put together by hand.
std::string frame_bytes(uint16_t kind, const std::string& body) {
  const auto length = static_cast<uint32_t>(body.size());
  constexpr uint16_t kVersion = 2;
  std::string bytes(8, '\0');
  std::memcpy(&bytes[0], &length, 4);
  std::memcpy(&bytes[4], &kind, 2);
  std::memcpy(&bytes[6], &kVersion, 2);
  return bytes + body;
}
const std::string kHello = frame_bytes(1, std::string(144, '\0'));
const std::string kLostRank = frame_bytes(4, std::string(616, '\0'));
const std::string kBye = frame_bytes(5, std::string(8, '\0'));

std::string many(const std::string& frame) {
  std::string bytes;
  while (bytes.size() < 64 << 10) bytes += frame;
  return bytes;
}

/// The longest time between two beats that arrive over it while `action` runs.
template <class Action>
std::chrono::milliseconds longest_gap(Connection& connection, Action action) {
  std::atomic<bool> ended = false;
  std::thread acting([&] {
    action();
    ended = true;
  });
  auto last = Clock::now();
  auto longest = Clock::duration(0);
  while (!ended) {
    for (const Frame& frame : connection.receive()) {
      EXPECT_TRUE(std::holds_alternative<Beat>(frame));
      last = Clock::now();
    }
    longest = std::max(longest, Clock::now() - last);
    std::this_thread::sleep_for(1ms);
  }
  acting.join();
  EXPECT_TRUE(connection.is_open());
  return std::chrono::duration_cast<std::chrono::milliseconds>(longest);
}

/// Rank 1 has joined, rank 2 has not, so rank 0 still listens.
class Intruder : public ::testing::Test {
 protected:
  Ranks ranks_{3, kPatient};
  Connection rank_1_ = ranks_.bare(1);
  const uint16_t port_ = ranks_.rendezvous().port;

  void expect_that_nothing_happened() {
    ranks_.start(2);
    ranks_.watch();
    EXPECT_TRUE(ranks_.all_met());
    EXPECT_EQ(ranks_[0].wait_lost(50ms), std::nullopt);
    const auto known = ranks_[0].ranks();
    for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(known[rank].pid, 1000 + rank);
  }
};

TEST_F(Intruder, AFloodOfGoodByesIsNotRead) {
  std::atomic<int64_t> most = 0;
  std::atomic<int> connections = 0;
  const auto gap = longest_gap(rank_1_, [&] {
    std::vector<std::thread> strangers;
    for (int i = 0; i < 4; ++i) {
      strangers.emplace_back([&] {
        const std::string byes = many(kBye);
        for (const auto end = Clock::now() + 2s; Clock::now() < end; ++connections) {
          RawSocket stranger(port_);
          ASSERT_TRUE(stranger.is_open());
          const int64_t sent = stranger.send_without_end(byes, 2s);
          for (int64_t seen = most; sent > seen && !most.compare_exchange_weak(seen, sent);) {
          }
        }
      });
    }
    for (std::thread& stranger : strangers) stranger.join();
  });
  std::cout << connections << " connections, at most " << most << " bytes each, beats at most "
            << gap.count() << " ms apart\n";
  EXPECT_GT(connections, 4);
  EXPECT_LT(most, kKernelBytesMax);
  EXPECT_LT(gap, 1s);
  expect_that_nothing_happened();
}

TEST_F(Intruder, WhoIsNoRankIsShownTheDoor) {
  std::mt19937_64 random(4711);
  std::string noise(4096, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  const std::string beat = frame_bytes(3, std::string(24, '\0'));
  const std::vector<std::string> sayings = {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                            noise,
                                            kBye,
                                            beat,
                                            many(beat),
                                            kLostRank,
                                            kHello,
                                            many(kHello),
                                            kHello.substr(0, 8) + noise,
                                            std::string(4096, '\0')};
  for (const std::string& said : sayings) {
    RawSocket stranger(port_);
    ASSERT_TRUE(stranger.is_open());
    stranger.send_without_end(said, 20ms);
    EXPECT_TRUE(stranger.is_closed_within(2s)) << "frame " << (&said - sayings.data());
  }
  expect_that_nothing_happened();
}

TEST_F(Intruder, WhoSaysNothingKeepsNobodyOut) {
  std::vector<std::unique_ptr<RawSocket>> silent;
  const auto gap = longest_gap(rank_1_, [&] {
    for (int i = 0; i < 300; ++i) silent.push_back(std::make_unique<RawSocket>(port_));
    const auto begin = Clock::now();
    ranks_.start(2);
    EXPECT_LT(Clock::now() - begin, 2s);
  });
  EXPECT_LT(gap, 1s);
  ranks_.watch();
  EXPECT_TRUE(ranks_.all_met());
  EXPECT_EQ(ranks_[0].wait_lost(50ms), std::nullopt);
}

TEST_F(Intruder, NobodyTakesARankThatIsThere) {
  EXPECT_THROW(join(ranks_.rendezvous(), Ranks::info(1), 300ms), UnavailableError);
  EXPECT_THROW(join(ranks_.rendezvous(), Ranks::info(0), 300ms), UnavailableError);
  EXPECT_THROW(join(ranks_.rendezvous(), Ranks::info(3), 300ms), UnavailableError);
  Rendezvous stolen = ranks_.rendezvous();
  stolen.token[15] ^= 1;
  EXPECT_THROW(join(stolen, Ranks::info(2), 300ms), UnavailableError);
  expect_that_nothing_happened();
}

TEST_F(Intruder, FindsNobodyListeningOnceAllRanksAreThere) {
  ranks_.start(2);
  EXPECT_TRUE(soon([&] { return !RawSocket(port_).is_open(); }));
}

TEST_F(Intruder, WithoutDescriptorsTheThreadDoesNotSpin) {
  const uint16_t port = port_;  // a sanitizer that looks at `this` needs a descriptor for that
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{128, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<int> taken;
  for (int copy; (copy = ::dup(STDOUT_FILENO)) >= 0;) taken.push_back(copy);
  ASSERT_FALSE(taken.empty());
  ::close(taken.back());
  taken.pop_back();
  const auto cpu_ms = [] {
    timespec used{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return used.tv_sec * 1000 + used.tv_nsec / 1'000'000;
  };
  const RawSocket waiting(port);  // it has the last descriptor
  EXPECT_TRUE(waiting.is_open());
  const auto begin = cpu_ms();
  std::this_thread::sleep_for(2s);
  EXPECT_LT(cpu_ms() - begin, 100) << "beats take a few";
  for (const int copy : taken) ::close(copy);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  expect_that_nothing_happened();
}

}  // namespace
}  // namespace fusedbun::health

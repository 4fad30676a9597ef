// What the ranks of a Gloo job notice when one of them dies or stops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <memory>

#include "child_process.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo.h"

namespace fusedbun::comm::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr int kPeerLost = static_cast<int>(ExitCode::peer_lost);
constexpr int kTimeout = static_cast<int>(ExitCode::timeout);

class GlooProcesses : public ::testing::Test {
 protected:
  static constexpr int kSize = 3;

  // Starts the ranks and waits until all of them have done some operations.
  void start(milliseconds timeout) {
    for (int rank = 0; rank < kSize; ++rank) {
      ranks_.push_back(std::make_unique<ChildProcess>(std::vector<std::string>{
          COMM_GLOO_RANK, std::to_string(rank), std::to_string(kSize),
          std::to_string(store_->port()), std::to_string(timeout.count())}));
    }
    for (const auto& rank : ranks_)
      ASSERT_TRUE(rank->prints("under way", seconds(50))) << rank->output();
  }

  const std::unique_ptr<StoreServer> store_ = serve_store("127.0.0.1", 0);
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

TEST_F(GlooProcesses, AKilledRankIsAPeerLostOnTheOthersLongBeforeTheDeadline) {
  start(seconds(60));
  ranks_[1]->signal(SIGKILL);
  const auto begin = std::chrono::steady_clock::now();
  for (const int survivor : {0, 2}) {
    EXPECT_EQ(ranks_[survivor]->wait(seconds(10)), kPeerLost) << ranks_[survivor]->output();
    EXPECT_THAT(ranks_[survivor]->output(),
                ::testing::ContainsRegex("gloo: rank [02] of 3 in all_reduce.*rank 1"))
        << "its own finding, or that of the survivor that was first";
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(5));
}

TEST_F(GlooProcesses, AStoppedRankIsATimeoutAtTheDeadline) {
  start(seconds(1));
  ranks_[1]->signal(SIGSTOP);
  const auto begin = std::chrono::steady_clock::now();
  // The first to lose patience closes its connections, which the other may notice before its own deadline.
  const int first = ranks_[0]->wait(seconds(10));
  const int second = ranks_[2]->wait(seconds(10));
  const auto waited = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(waited, milliseconds(900));
  EXPECT_LT(waited, seconds(5));
  EXPECT_THAT(first, AnyOf(kTimeout, kPeerLost)) << ranks_[0]->output();
  EXPECT_THAT(second, AnyOf(kTimeout, kPeerLost)) << ranks_[2]->output();
  const ChildProcess& impatient = *ranks_[first == kTimeout ? 0 : 2];
  EXPECT_TRUE(first == kTimeout || second == kTimeout);
  EXPECT_THAT(impatient.output(), HasSubstr("not done after 1000 ms"));
  ranks_[1]->signal(SIGCONT);
  EXPECT_THAT(ranks_[1]->wait(seconds(10)), AnyOf(kTimeout, kPeerLost))
      << "a rank that wakes up late finds itself alone";
}

}  // namespace
}  // namespace fusedbun::comm::testing

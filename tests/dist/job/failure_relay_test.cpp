// What the GPU's watchdog finds reaches a real heartbeat, which ends a process that does not leave by itself.
#include "fusedbun/dist/job/failure_relay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/health/proof.h"

namespace fusedbun {
namespace {

using namespace std::chrono_literals;
using Cause = plan::LostRank::Cause;

const comm::Failure kOverdue{ExitCode::timeout, "nccl: all_reduce was not done after 50 ms"};
const comm::Failure kPeer{ExitCode::peer_lost, "nccl: a remote process exited"};

class Relay : public ::testing::Test {
 protected:
  Relay()
      : host_(std::move(comm::make_local_communicators(1).front())),
        heartbeat_({.me = {.pid = 1, .host = "here"},
                    .beat =
                        [] {
                          return health::Beat{{3, plan::Phase::update}, 0, 0};
                        },
                    .on_lost = [](const plan::LostRank&) {},
                    .on_overdue = [this] { overdue_.set_value(); },
                    .leave_us = 100'000},
                   health::ListeningSocket(), health::Token()) {}

  bool is_overdue_within(std::chrono::milliseconds limit) {
    return overdue_.get_future().wait_for(limit) == std::future_status::ready;
  }

  std::promise<void> overdue_;
  std::unique_ptr<comm::Communicator> host_;
  health::Heartbeat heartbeat_;
  FailureRelay relay_;
};

TEST_F(Relay, AProcessThatDoesNotLeaveIsOverdueWithTheWatchdogsWords) {
  relay_.start(heartbeat_, *host_, 5s);
  relay_.tell(kOverdue);
  ASSERT_TRUE(is_overdue_within(5s));
  const plan::LostRank lost = *heartbeat_.lost();
  EXPECT_EQ(lost.cause, Cause::failed);
  EXPECT_EQ(lost.code, static_cast<int>(ExitCode::timeout));
  EXPECT_EQ(lost.reason, kOverdue.text);
}

TEST_F(Relay, AWaitOnTheHostEndsToo) {
  relay_.start(heartbeat_, *host_, 5s);
  relay_.tell(kOverdue);
  ASSERT_TRUE(is_overdue_within(5s));
  EXPECT_EQ(host_->failure()->text, kOverdue.text);
}

TEST_F(Relay, WhatComesBeforeTheHeartbeatIsToldThen) {
  relay_.tell(kOverdue);
  relay_.tell({ExitCode::device, "a second failure"});
  relay_.start(heartbeat_, *host_, 5s);
  ASSERT_TRUE(is_overdue_within(5s));
  EXPECT_EQ(heartbeat_.lost()->reason, kOverdue.text) << "the first failure counts";
}

TEST_F(Relay, RanksMayFindALostPeerFirst) {
  relay_.start(heartbeat_, *host_, 30s);
  relay_.tell(kPeer);
  heartbeat_.fail(static_cast<int>(ExitCode::io), "what the ranks have found");
  ASSERT_TRUE(is_overdue_within(5s));
  EXPECT_EQ(heartbeat_.lost()->reason, "what the ranks have found");
}

TEST_F(Relay, WhereTheRanksFindNobodyTheBlamedPeerEndsTheProcess) {
  relay_.start(heartbeat_, *host_, 50ms);
  relay_.tell(kPeer);
  ASSERT_TRUE(is_overdue_within(5s));
  EXPECT_EQ(heartbeat_.lost()->reason, kPeer.text);
}

TEST_F(Relay, NothingIsPassedOnAfterItWasStopped) {
  relay_.start(heartbeat_, *host_, 5s);
  relay_.stop();
  relay_.tell(kOverdue);
  EXPECT_FALSE(is_overdue_within(300ms));
  EXPECT_EQ(heartbeat_.lost(), std::nullopt);
}

}  // namespace
}  // namespace fusedbun

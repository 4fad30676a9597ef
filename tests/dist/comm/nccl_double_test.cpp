// The NCCL backend over a double: order of calls, errors at every call, abort, deadlines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"
#include "nccl_double.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::chrono::seconds kLong{5};
constexpr std::chrono::milliseconds kShort{50};

Stream consumer() {
  return Stream(cudaStreamPerThread);
}

// The rank under test is rank 1 of 3; ranks 0 and 2 exist on the host's side only.
class NcclOverDouble : public ::testing::Test {
 protected:
  std::unique_ptr<Communicator> connect(std::chrono::milliseconds timeout = kLong,
                                        int32_t result_of_rank0 = 0) {
    struct {
      int32_t result;
      ncclUniqueId id;
    } sent{result_of_rank0, {}}, received{};
    const auto hosts = make_local_communicators(3);
    Work from_rank0 = hosts[0]->broadcast({&sent, sizeof sent, DataType::u8}, 0);
    Work at_rank2 = hosts[2]->broadcast({&received, sizeof received, DataType::u8}, 0);
    auto communicator =
        connect_nccl({.rank = 1, .size = 3, .timeout = timeout}, *hosts[1], nccl_.api());
    from_rank0.wait();
    at_rank2.wait();
    nccl_.calls.clear();
    return communicator;
  }

  // Buffers of floats that nobody reads.
  static Buffer floats(int64_t count) {
    static float memory[64];
    return {memory, count, DataType::f32};
  }

  static Message bytes(int64_t count, int peer) {
    return {peer, static_cast<std::byte*>(floats(0).data), count};
  }

  NcclDouble nccl_;
};

TEST_F(NcclOverDouble, EqualPortionsTakeOneCall) {
  const auto comm = connect();
  comm->reduce_scatter(floats(12), floats(4), {4, 4, 4}).wait();
  EXPECT_THAT(
      nccl_.calls,
      ElementsAre("event_create", "event_record(producer)", "stream_wait_event(own)", "group_start",
                  "reduce_scatter(count 4, f32)", "group_end", "event_record(own)"));
  nccl_.calls.clear();
  comm->all_gather(floats(4), floats(12), {4, 4, 4}).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_record(producer)", "stream_wait_event(own)", "group_start",
                          "all_gather(count 4, f32)", "group_end", "event_record(own)"))
      << "the event is used again";
}

TEST_F(NcclOverDouble, UnevenPortionsTakeOneGroupAndSkipTheEmptyOnes) {
  const auto comm = connect();
  comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_create", "event_record(producer)", "stream_wait_event(own)",
                          "group_start", "reduce(count 2, f32, root 0)",
                          "reduce(count 7, f32, root 1, mine)", "group_end", "event_record(own)"));
  nccl_.calls.clear();
  comm->all_gather(floats(7), floats(9), {2, 7, 0}).wait();
  EXPECT_THAT(nccl_.calls, ElementsAre("event_record(producer)", "stream_wait_event(own)",
                                       "group_start", "broadcast(count 2, f32, root 0)",
                                       "broadcast(count 7, f32, root 1, mine)", "group_end",
                                       "event_record(own)"));
}

TEST_F(NcclOverDouble, TheOtherOperations) {
  const auto comm = connect();
  comm->all_reduce(floats(5), ReduceOp::sum).wait();
  EXPECT_THAT(nccl_.calls, Contains("all_reduce(count 5, f32, sum)"));
  comm->broadcast(floats(5), 2).wait();
  EXPECT_THAT(nccl_.calls, Contains("broadcast(count 5, f32, root 2, mine)"));
  comm->barrier().wait();
  EXPECT_THAT(nccl_.calls, Contains("all_reduce(count 1, u8, max)"));
  nccl_.calls.clear();
  comm->exchange({bytes(4, 0), bytes(8, 2), bytes(5, 2)}, {bytes(8, 2), bytes(8, 0)}).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_record(producer)", "stream_wait_event(own)", "group_start",
                          "send(count 4, u8, to 0)", "send(count 8, u8, to 2)",
                          "send(count 5, u8, to 2)", "recv(count 8, u8, from 2)",
                          "recv(count 8, u8, from 0)", "group_end", "event_record(own)"));
}

TEST_F(NcclOverDouble, AStreamWaitsByAnEventAndTheHostDoesNot) {
  const auto comm = connect();
  nccl_.events_are_reached = false;  // a host wait would never end
  comm->all_reduce(floats(5), ReduceOp::sum).wait_on(consumer());
  EXPECT_EQ(nccl_.calls.back(), "stream_wait_event(consumer)");
}

TEST_F(NcclOverDouble, GroupsAreSplitOffAndOthersGetNone) {
  const auto comm = connect();
  const auto group = comm->group({2, 1});
  ASSERT_NE(group, nullptr);
  EXPECT_EQ(group->rank(), 1);
  EXPECT_EQ(group->size(), 2);
  EXPECT_THAT(nccl_.calls, Contains("comm_split(key 1)"));
  EXPECT_EQ(comm->group({0, 2}), nullptr);
  EXPECT_THAT(nccl_.calls, Contains("comm_split(none)"));
}

TEST_F(NcclOverDouble, GoesInPeaceAndLeavesNothing) {
  {
    const auto comm = connect();
    comm->barrier().wait();
    const auto group = comm->group({0, 1});
    nccl_.calls.clear();
  }
  EXPECT_EQ(nccl_.communicators, 0);
  EXPECT_EQ(nccl_.resources, 0);
  EXPECT_THAT(nccl_.calls, Not(Contains("comm_abort")));
}

// Every call that connecting and one operation make fails once.
class NcclErrors : public NcclOverDouble, public ::testing::WithParamInterface<const char*> {};

TEST_P(NcclErrors, AreTypedAndLeakNothing) {
  nccl_.failures[GetParam()] = 2;
  try {
    const auto comm = connect();
    comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}).wait();
    comm->all_gather(floats(4), floats(12), {4, 4, 4}).wait();
    comm->reduce_scatter(floats(12), floats(4), {4, 4, 4}).wait();
    comm->all_gather(floats(7), floats(9), {2, 7, 0}).wait();
    comm->all_reduce(floats(1), ReduceOp::sum).wait();
    comm->exchange({bytes(4, 0), bytes(8, 2), bytes(5, 2)}, {bytes(8, 2), bytes(8, 0)}).wait();
    (void)comm->group({0, 1});
    ADD_FAILURE() << GetParam() << " failed and nobody noticed";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), HasSubstr("nccl: rank 1 of"));
    EXPECT_THAT(error.what(), HasSubstr("the double's"));
  }
  EXPECT_TRUE(nccl_.failures.empty());
  EXPECT_EQ(nccl_.communicators, 0);
  EXPECT_EQ(nccl_.resources, 0);
}

INSTANTIATE_TEST_SUITE_P(EveryCall, NcclErrors,
                         ::testing::Values("comm_init_rank_config", "stream_create", "event_create",
                                           "malloc", "event_record", "stream_wait_event",
                                           "group_start", "reduce", "group_end", "all_gather",
                                           "reduce_scatter", "broadcast", "all_reduce", "send",
                                           "recv", "comm_split"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(NcclOverDouble, AnErrorInsideAGroupEndsTheGroupAndBreaksTheCommunicator) {
  const auto comm = connect();
  nccl_.failures["reduce"] = ncclInternalError;
  EXPECT_THROW(comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}), DeviceError);
  EXPECT_THAT(nccl_.calls, ElementsAre("event_create", "event_record(producer)",
                                       "stream_wait_event(own)", "group_start",
                                       "reduce(count 2, f32, root 0)", "group_end", "comm_abort"));
  nccl_.calls.clear();
  EXPECT_THROW(comm->barrier().wait(), DeviceError) << "later waits tell the first failure";
  EXPECT_THAT(nccl_.calls, ElementsAre()) << "nothing is launched on a broken communicator";
}

TEST_F(NcclOverDouble, AsynchronousErrorsAreSeenByTheWait) {
  const auto comm = connect();
  Work work = comm->barrier();
  nccl_.events_are_reached = false;
  nccl_.async_state = ncclRemoteError;
  try {
    work.wait();
    ADD_FAILURE() << "the wait ended";
  } catch (const PeerLostError& error) {
    EXPECT_THAT(error.what(), HasSubstr("barrier failed: the double's error (its detail)"));
  }
  EXPECT_EQ(nccl_.calls.back(), "comm_abort");
  EXPECT_EQ(nccl_.communicators, 0);
}

TEST_F(NcclOverDouble, AsynchronousErrorsAreSeenByTheNextLaunch) {
  const auto comm = connect();
  nccl_.async_state = ncclSystemError;
  EXPECT_THROW(comm->barrier(), DeviceError);
}

TEST_F(NcclOverDouble, AWaitThrowsAtItsDeadline) {
  const auto comm = connect(kShort);
  nccl_.events_are_reached = false;
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(comm->barrier().wait(), TimeoutError);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kShort);
  EXPECT_THROW(comm->barrier().wait(), TimeoutError);
}

TEST_F(NcclOverDouble, ConnectingAndLaunchingHaveDeadlinesToo) {
  {
    const auto comm = connect(kShort);
    nccl_.async_state = ncclInProgress;
    EXPECT_THROW(comm->barrier(), TimeoutError);
  }
  EXPECT_THROW(connect(kShort), TimeoutError);
  EXPECT_EQ(nccl_.communicators, 0);
}

TEST_F(NcclOverDouble, AbortEndsAWaitOnAnotherThread) {
  const auto comm = connect();
  nccl_.events_are_reached = false;
  Work work = comm->barrier();
  std::thread other([&] {
    std::this_thread::sleep_for(kShort);
    comm->abort("the test says so");
  });
  try {
    work.wait();
    ADD_FAILURE() << "the wait ended";
  } catch (const PeerLostError& error) {
    EXPECT_STREQ(error.what(), "the test says so");
  }
  other.join();
  EXPECT_EQ(nccl_.communicators, 0);
}

TEST_F(NcclOverDouble, RankZerosTroubleWithTheIdIsToldByAll) {
  EXPECT_THROW(connect(kLong, ncclSystemError), DeviceError);
}

}  // namespace
}  // namespace fusedbun::comm::testing

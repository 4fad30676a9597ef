// The NCCL backend over a double: order of calls, errors at every call, abort, deadlines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"
#include "nccl_double.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::chrono::seconds kLong{5};
constexpr std::chrono::milliseconds kShort{50};

Stream producer() {
  return Stream(cudaStreamLegacy);
}
Stream consumer() {
  return Stream(cudaStreamPerThread);
}

// The rank under test is rank 1 of 3; ranks 0 and 2 exist on the host's side only.
class NcclOverDouble : public ::testing::Test {
 protected:
  NcclOverDouble() {
    nccl_.streams = {{static_cast<cudaStream_t>(producer().handle()), "producer"},
                     {static_cast<cudaStream_t>(consumer().handle()), "consumer"}};
  }

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
        connect_nccl({.rank = 1, .size = 3, .timeout = timeout, .on_failure = on_failure_},
                     *hosts[1], nccl_.api());
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
  std::function<void(const Failure&)> on_failure_ = [](const Failure&) {};
};

TEST_F(NcclOverDouble, EqualPortionsTakeOneCall) {
  const auto comm = connect();
  comm->reduce_scatter(floats(12), floats(4), {4, 4, 4}, producer()).wait();
  EXPECT_THAT(
      nccl_.calls,
      ElementsAre("event_create", "event_record(producer)", "stream_wait_event(own)", "group_start",
                  "reduce_scatter(count 4, f32)", "group_end", "event_record(own)"));
  nccl_.calls.clear();
  comm->all_gather(floats(4), floats(12), {4, 4, 4}, producer()).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_record(producer)", "stream_wait_event(own)", "group_start",
                          "all_gather(count 4, f32)", "group_end", "event_record(own)"))
      << "the event is used again";
}

TEST_F(NcclOverDouble, UnevenPortionsTakeOneGroupAndSkipTheEmptyOnes) {
  const auto comm = connect();
  comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}, producer()).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_create", "event_record(producer)", "stream_wait_event(own)",
                          "group_start", "reduce(count 2, f32, root 0, in place)",
                          "reduce(count 7, f32, root 1)", "group_end", "event_record(own)"));
  nccl_.calls.clear();
  comm->all_gather(floats(7), floats(9), {2, 7, 0}, producer()).wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_record(producer)", "stream_wait_event(own)", "group_start",
                          "broadcast(count 2, f32, root 0, in place)",
                          "broadcast(count 7, f32, root 1)", "group_end", "event_record(own)"));
}

TEST_F(NcclOverDouble, TheOtherOperations) {
  const auto comm = connect();
  comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait();
  EXPECT_THAT(nccl_.calls, Contains("all_reduce(count 5, f32, sum)"));
  comm->broadcast(floats(5), 2, producer()).wait();
  EXPECT_THAT(nccl_.calls, Contains("broadcast(count 5, f32, root 2, in place)"));
  comm->barrier(producer()).wait();
  EXPECT_THAT(nccl_.calls, Contains("all_reduce(count 1, u8, max)"));
  nccl_.calls.clear();
  comm->exchange({bytes(4, 0), bytes(8, 2), bytes(5, 2)}, {bytes(8, 2), bytes(8, 0)}, producer())
      .wait();
  EXPECT_THAT(nccl_.calls,
              ElementsAre("event_record(producer)", "stream_wait_event(own)", "group_start",
                          "send(count 4, u8, to 0)", "send(count 8, u8, to 2)",
                          "send(count 5, u8, to 2)", "recv(count 8, u8, from 2)",
                          "recv(count 8, u8, from 0)", "group_end", "event_record(own)"));
}

TEST_F(NcclOverDouble, AStreamWaitsByAnEventAndTheHostDoesNot) {
  const auto comm = connect();
  nccl_.events_are_reached = false;  // a host wait would never end
  comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait_on(consumer());
  EXPECT_EQ(nccl_.calls.back(), "stream_wait_event(consumer)");
}

TEST_F(NcclOverDouble, AnOperationStartsAfterTheStreamThatWasGivenToIt) {
  static char side;  // its address stands for a stream of the program's
  const auto stream = reinterpret_cast<cudaStream_t>(&side);
  nccl_.streams[stream] = "side";
  const auto comm = connect();
  comm->all_reduce(floats(5), ReduceOp::sum, Stream(stream)).wait();
  EXPECT_THAT(nccl_.calls, Contains("event_record(side)"));
  EXPECT_THAT(nccl_.calls, Not(Contains("event_record(producer)")));
  nccl_.calls.clear();
  comm->barrier(producer()).wait();
  EXPECT_THAT(nccl_.calls, Contains("event_record(producer)"));
  EXPECT_THAT(nccl_.calls, Not(Contains("event_record(side)")));
}

TEST_F(NcclOverDouble, WithoutAStreamAnOperationIsRefusedAndNothingBreaks) {
  const auto comm = connect();
  EXPECT_THAT(
      [&] { comm->all_reduce(floats(5), ReduceOp::sum); },
      ::testing::ThrowsMessage<ConfigError>(
          "nccl: rank 1 called all_reduce(f32, 5, sum) on a GPU's memory without the stream "
          "that makes it ready: pass the stream as `producer`"));
  EXPECT_THAT(nccl_.calls, ElementsAre());
  comm->barrier(producer()).wait();
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
    comm->barrier(producer()).wait();
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
    comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}, producer()).wait();
    comm->all_gather(floats(4), floats(12), {4, 4, 4}, producer()).wait();
    comm->reduce_scatter(floats(12), floats(4), {4, 4, 4}, producer()).wait();
    comm->all_gather(floats(7), floats(9), {2, 7, 0}, producer()).wait();
    comm->all_reduce(floats(1), ReduceOp::sum, producer()).wait();
    comm->exchange({bytes(4, 0), bytes(8, 2), bytes(5, 2)}, {bytes(8, 2), bytes(8, 0)}, producer())
        .wait();
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
  EXPECT_THROW(comm->reduce_scatter(floats(9), floats(7), {2, 7, 0}, producer()), DeviceError);
  EXPECT_THAT(
      nccl_.calls,
      ElementsAre("event_create", "event_record(producer)", "stream_wait_event(own)", "group_start",
                  "reduce(count 2, f32, root 0, in place)", "group_end", "comm_abort"));
  nccl_.calls.clear();
  EXPECT_THROW(comm->barrier(producer()).wait(), DeviceError)
      << "later waits tell the first failure";
  EXPECT_THAT(nccl_.calls, ElementsAre()) << "nothing is launched on a broken communicator";
}

TEST_F(NcclOverDouble, AsynchronousErrorsAreSeenByTheWait) {
  const auto comm = connect();
  Work work = comm->barrier(producer());
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
  EXPECT_THROW(comm->barrier(producer()), DeviceError);
}

TEST_F(NcclOverDouble, AWaitThrowsAtItsDeadline) {
  const auto comm = connect(kShort);
  nccl_.events_are_reached = false;
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(comm->barrier(producer()).wait(), TimeoutError);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kShort);
  EXPECT_THROW(comm->barrier(producer()).wait(), TimeoutError);
}

TEST_F(NcclOverDouble, ConnectingAndLaunchingHaveDeadlinesToo) {
  {
    const auto comm = connect(kShort);
    nccl_.async_state = ncclInProgress;
    EXPECT_THROW(comm->barrier(producer()), TimeoutError);
  }
  EXPECT_THROW(connect(kShort), TimeoutError);
  EXPECT_EQ(nccl_.communicators, 0);
}

TEST_F(NcclOverDouble, AbortEndsAWaitOnAnotherThread) {
  const auto comm = connect();
  nccl_.events_are_reached = false;
  Work work = comm->barrier(producer());
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

// ---- the watchdog: nobody on the host waits ----

/// What the watchdog found, told to a thread that waits for it.
class Found {
 public:
  std::function<void(const Failure&)> teller() {
    return [this](const Failure& failure) {
      ++times_;
      told_.set_value(failure);
    };
  }
  /// Within 5 s, or the test fails.
  Failure get() {
    auto future = told_.get_future();
    if (future.wait_for(kLong) != std::future_status::ready) return {ExitCode::done, "nothing"};
    return future.get();
  }
  int times() const { return times_; }

 private:
  std::promise<Failure> told_;
  std::atomic<int> times_ = 0;
};

TEST_F(NcclOverDouble, AnOperationThatNobodyWaitsForFailsAtItsDeadlineWithItsName) {
  Found found;
  on_failure_ = found.teller();
  const auto comm = connect(kShort);
  nccl_.events_are_reached = false;
  const auto begin = std::chrono::steady_clock::now();
  comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait_on(consumer());
  comm->broadcast(floats(5), 2, producer()).wait_on(consumer());
  const Failure failure = found.get();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, kShort);
  EXPECT_EQ(failure.code, ExitCode::timeout);
  EXPECT_THAT(failure.text, HasSubstr("nccl: rank 1 of 3 on GPU 0: all_reduce(f32, 5, sum) was not "
                                      "done after "));
  EXPECT_THAT(failure.text, HasSubstr("a rank is stopped, late or unreachable (1 more operation(s) "
                                      "wait behind it)"));
  EXPECT_THROW(comm->barrier(producer()).wait(), TimeoutError);
  EXPECT_EQ(found.times(), 1);
}

TEST_F(NcclOverDouble, AnAsynchronousErrorIsFoundWithoutACallOfTheHost) {
  Found found;
  on_failure_ = found.teller();
  const auto comm = connect();
  nccl_.events_are_reached = false;
  comm->all_gather(floats(4), floats(12), {4, 4, 4}, producer()).wait_on(consumer());
  nccl_.async_state = ncclRemoteError;
  const Failure failure = found.get();
  EXPECT_EQ(failure.code, ExitCode::peer_lost);
  EXPECT_EQ(failure.text,
            "nccl: rank 1 of 3 on GPU 0: all_gather(f32, counts 4 4 4) failed: the "
            "double's error (its detail)");
}

TEST_F(NcclOverDouble, AnAsynchronousErrorIsFoundWhileNothingIsUnderWay) {
  Found found;
  on_failure_ = found.teller();
  const auto comm = connect();
  nccl_.async_state = ncclSystemError;
  EXPECT_EQ(found.get().code, ExitCode::device);
}

TEST_F(NcclOverDouble, TheDeadlineCountsFromTheLastOperationThatEnded) {
  constexpr std::chrono::milliseconds kTimeout{900};
  Found found;
  on_failure_ = found.teller();
  const auto comm = connect(kTimeout);
  nccl_.operations_ended = 0;
  for (int i = 0; i < 3; ++i) {
    comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait_on(consumer());
  }
  for (int i = 1; i <= 3;
       ++i) {  // the last one ends long after its launch, but something always moves
    std::this_thread::sleep_for(kTimeout / 2);
    nccl_.operations_ended = i;
  }
  comm->set_timeout(kLong);
  nccl_.operations_ended = 4;
  comm->barrier(producer()).wait();
  EXPECT_EQ(found.times(), 0);
}

TEST_F(NcclOverDouble, AnAbortIsNoFindingOfTheWatchdogAndDoesNotWaitForNccl) {
  Found found;
  on_failure_ = found.teller();
  const auto comm = connect();
  nccl_.abort_takes = std::chrono::seconds(1);
  const auto begin = std::chrono::steady_clock::now();
  comm->abort("the test says so");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, nccl_.abort_takes / 2);
  EXPECT_THROW(comm->barrier(producer()).wait(), PeerLostError);
  EXPECT_EQ(found.times(), 0);
}

TEST_F(NcclOverDouble, AWaitThrowsOnlyWhenNcclHasLetGoOfTheBuffers) {
  const auto comm = connect(kShort);
  nccl_.events_are_reached = false;
  nccl_.abort_takes = std::chrono::milliseconds(200);
  Work work = comm->barrier(producer());
  EXPECT_THROW(work.wait(), TimeoutError);
  EXPECT_EQ(nccl_.communicators, 0) << "comm_abort has returned";
}

TEST_F(NcclOverDouble, MayBeDestroyedWhileAnOperationIsUnderWay) {
  {
    const auto comm = connect();
    nccl_.events_are_reached = false;
    comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait_on(consumer());
  }
  EXPECT_EQ(nccl_.communicators, 0);
  EXPECT_EQ(nccl_.resources, 0);
}

TEST_F(NcclOverDouble, DestructionEndsAtTheDeadlineOfWhatIsUnderWay) {
  Found found;
  on_failure_ = found.teller();
  {
    const auto comm = connect(kLong);
    comm->set_timeout(kShort);
    nccl_.events_are_reached = false;
    comm->all_reduce(floats(5), ReduceOp::sum, producer()).wait_on(consumer());
    nccl_.async_state = ncclInProgress;  // finalising waits for the operation
  }
  EXPECT_EQ(found.get().code, ExitCode::timeout);
  EXPECT_EQ(nccl_.communicators, 0);
  EXPECT_EQ(nccl_.resources, 0);
}

TEST_F(NcclOverDouble, AFullGpuIsNamedWithWhatIsFree) {
  nccl_.failures["malloc"] = cudaErrorMemoryAllocation;
  EXPECT_THAT([&] { connect(); },
              ::testing::ThrowsMessage<DeviceError>(
                  AllOf(HasSubstr("nccl: rank 1 of 3 on GPU 0: cuda_malloc failed"),
                        HasSubstr("the GPU's memory is full (0.50 GiB of 80.00 GiB are free)"),
                        HasSubstr("take a smaller batch"))));
}

// ---- what there is before anything is connected ----

TEST(NcclProbe, TellsTheGpusApart) {
  NcclDouble nccl;
  nccl.device_count = 2;
  const NcclProbe probe = probe_nccl(nccl.api());
  EXPECT_EQ(probe.error, "");
  ASSERT_EQ(probe.gpus.size(), 2u);
  EXPECT_EQ(probe.gpus[0].uuid[0], 0xa0);
  EXPECT_EQ(probe.gpus[1].uuid[0], 0xa1);
  EXPECT_EQ(probe.nccl_version, 23007);
  EXPECT_EQ(probe.runtime_version, 13000);
}

TEST(NcclProbe, SaysWhyThereAreNone) {
  NcclDouble nccl;
  nccl.driver_version = 0;
  nccl.device_count = -cudaErrorInsufficientDriver;
  const NcclProbe probe = probe_nccl(nccl.api());
  EXPECT_EQ(probe.error, "the double's CUDA error");
  EXPECT_EQ(probe.driver_version, 0);
  EXPECT_TRUE(probe.gpus.empty());
}

TEST(NcclProbe, AGpuWhoseUuidCannotBeReadIsNoGpu) {
  NcclDouble nccl;
  nccl.failures["get_device_properties"] = cudaErrorUnknown;
  const NcclProbe probe = probe_nccl(nccl.api());
  EXPECT_EQ(probe.error, "the double's CUDA error");
  EXPECT_TRUE(probe.gpus.empty());
}

TEST_F(NcclOverDouble, RankZerosTroubleWithTheIdIsToldByAll) {
  EXPECT_THROW(connect(kLong, ncclSystemError), DeviceError);
}

}  // namespace
}  // namespace fusedbun::comm::testing

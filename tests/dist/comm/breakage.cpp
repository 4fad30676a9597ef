#include <chrono>
#include <stdexcept>
#include <thread>

#include "conformance.h"
#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

TEST_P(Breakage, AbortFailsPendingAndLaterWaits) {
  const auto world = GetParam().make(std::chrono::seconds(30));
  const auto begin = std::chrono::steady_clock::now();
  world->run([&](Communicator& comm) {
    Array<float> data(*world, 1000, 1.0f);
    if (comm.rank() == 0) {  // nobody else joins it
      Work pending = comm.all_reduce(data.all(), ReduceOp::sum);
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        comm.abort("the test says so");
        comm.abort("a second reason, which is not told");
      });
      try {
        pending.wait();
        ADD_FAILURE() << "the wait ended although the communicator was aborted";
      } catch (const PeerLostError& error) {
        EXPECT_STREQ(error.what(), "the test says so");
      }
      other.join();
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      comm.abort("rank 0 aborted 150 ms ago");
    }
    EXPECT_THROW(comm.barrier().wait(), PeerLostError);
    comm.barrier();  // an aborted communicator's operations may be dropped
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_P(Breakage, AbortReachesThePeersWhereTheBackendCanTellThem) {
  const auto world = GetParam().make(std::chrono::seconds(30));
  if (!world->abort_reaches_peers())
    GTEST_SKIP() << "this backend cannot: its launcher ends the peers";
  const auto begin = std::chrono::steady_clock::now();
  world->run([&](Communicator& comm) {
    if (comm.rank() == 0) return comm.abort("rank 0 leaves");
    Array<float> data(*world, 1000, 1.0f);
    EXPECT_THROW(comm.all_reduce(data.all(), ReduceOp::sum).wait(), PeerLostError);
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_P(Breakage, WaitThrowsAtItsDeadline) {
  constexpr std::chrono::milliseconds kTimeout(300);
  const auto world = GetParam().make(kTimeout);
  world->run([&](Communicator& comm) {
    if (comm.rank() == 0) {
      Array<float> data(*world, 1000, 1.0f);
      const auto begin = std::chrono::steady_clock::now();
      EXPECT_THROW(comm.all_reduce(data.all(), ReduceOp::sum).wait(), TimeoutError);
      const auto waited = std::chrono::steady_clock::now() - begin;
      EXPECT_GE(waited, kTimeout);
      EXPECT_LT(waited, kTimeout + std::chrono::seconds(5));
      EXPECT_THROW(comm.barrier().wait(), TimeoutError) << "broken communicators stay broken";
    } else {
      std::this_thread::sleep_for(kTimeout * 2);
      comm.abort("this rank was late on purpose");
    }
  });
}

TEST_P(Breakage, AnErrorThatUnwindsDropsOperationsSafely) {
  const auto world = GetParam().make(std::chrono::seconds(30));
  world->run([&](Communicator& comm) {
    if (comm.rank() != 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      return comm.abort("done");
    }
    try {
      Array<float> data(*world, 1'000'000, 1.0f);
      Work pending = comm.all_reduce(data.all(), ReduceOp::sum);
      throw std::runtime_error("the caller's own trouble");
    } catch (const std::runtime_error&) {
    }
    EXPECT_THROW(comm.barrier().wait(), PeerLostError);
  });
}

}  // namespace
}  // namespace fusedbun::comm::testing

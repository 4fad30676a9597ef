#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>

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

TEST_P(Breakage, ADeadlineThatIsSetHoldsFromThenOnAndInGroups) {
  constexpr std::chrono::milliseconds kTimeout(1000);
  const auto world = GetParam().make(std::chrono::seconds(30));
  world->run([&](Communicator& comm) {
    comm.set_timeout(kTimeout);
    std::vector<int> ranks(static_cast<size_t>(comm.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    const auto group = comm.group(ranks);
    if (comm.rank() == 0) {
      const auto begin = std::chrono::steady_clock::now();
      EXPECT_THROW(group->barrier().wait(), TimeoutError);
      EXPECT_LT(std::chrono::steady_clock::now() - begin, kTimeout + std::chrono::seconds(5));
    } else {
      std::this_thread::sleep_for(kTimeout * 2);
      group->abort("this rank was late on purpose");
    }
    comm.abort("the test is over");
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

using CollectiveCall = std::function<Work(World&, Communicator&, Array<float>&)>;
struct Mismatch {
  CollectiveCall of_last_rank;
  CollectiveCall of_others;
  std::string of_last_rank_text;
  std::string of_others_text;
};

Work sum_of(Communicator& comm, Array<float>& data, int64_t count) {
  return comm.all_reduce(data.part(0, count), ReduceOp::sum);
}

std::vector<Mismatch> mismatches() {
  const CollectiveCall barrier = [](World&, Communicator& comm, Array<float>&) {
    return comm.barrier();
  };
  const CollectiveCall short_sum = [](World&, Communicator& comm, Array<float>& data) {
    return sum_of(comm, data, 100);
  };
  const CollectiveCall other_sum = [](World&, Communicator& comm, Array<float>& data) {
    return sum_of(comm, data, 101);
  };
  const CollectiveCall long_sum = [](World&, Communicator& comm, Array<float>& data) {
    return sum_of(comm, data, 1'000'000);
  };
  // Only the last rank and rank 0 exchange; rank 0 expects less than is sent.
  const CollectiveCall sends_more = [](World&, Communicator& comm, Array<float>& data) {
    return comm.exchange({{0, static_cast<std::byte*>(data.all().data), 4000}}, {});
  };
  const CollectiveCall expects_less = [](World&, Communicator& comm, Array<float>& data) {
    if (comm.rank() != 0) return comm.exchange({}, {});
    return comm.exchange({}, {{comm.size() - 1, static_cast<std::byte*>(data.all().data), 400}});
  };
  const CollectiveCall expects_nothing = [](World&, Communicator& comm, Array<float>&) {
    return comm.exchange({}, {});
  };
  const std::string sum_text = "called all_reduce(f32, 100, sum)";
  return {{barrier, short_sum, "called barrier", sum_text},
          {short_sum, barrier, sum_text, "called barrier"},
          {other_sum, short_sum, "called all_reduce(f32, 101, sum)", sum_text},
          {short_sum, other_sum, sum_text, "called all_reduce(f32, 101, sum)"},
          {long_sum, short_sum, "called all_reduce(f32, 1000000, sum)", sum_text},
          {short_sum, long_sum, sum_text, "called all_reduce(f32, 1000000, sum)"},
          {sends_more, expects_less, "called exchange", "called exchange"},
          {expects_nothing, expects_less, "called exchange", "called exchange"},
          {short_sum, expects_less, sum_text, "called exchange"}};
}

// Within seconds, not at the deadline; in the words of one sentence; also where a long message would meet a short
// receive.
TEST_P(Breakage, CallsThatDoNotMatchAreNamedOnEveryRank) {
  for (const Mismatch& mismatch : mismatches()) {
    const auto world = GetParam().make(std::chrono::seconds(30));
    if (!world->names_mismatches()) GTEST_SKIP() << "this backend cannot";
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::string> told(static_cast<size_t>(world->size()));
    world->run([&](Communicator& comm) {
      Array<float> data(*world, 1'000'000, 1.0f);
      for (int i = 0; i < 3; ++i) comm.barrier().wait();
      const bool is_last = comm.rank() == comm.size() - 1;
      try {
        (is_last ? mismatch.of_last_rank : mismatch.of_others)(*world, comm, data).wait();
        comm.barrier().wait();  // an exchange without messages ends at once
      } catch (const ConfigError& error) {
        told[static_cast<size_t>(comm.rank())] = error.what();
      }
    });
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
    for (const std::string& sentence : told) {
      const std::string last = "rank " + std::to_string(world->size() - 1) + " ";
      EXPECT_THAT(sentence, ::testing::HasSubstr(last + mismatch.of_last_rank_text));
      EXPECT_THAT(sentence, ::testing::HasSubstr(mismatch.of_others_text));
      EXPECT_THAT(sentence, ::testing::HasSubstr("(operation "));
    }
  }
}

}  // namespace
}  // namespace fusedbun::comm::testing

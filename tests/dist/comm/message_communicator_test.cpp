#include "fusedbun/dist/comm/message_communicator.h"

#include <gmock/gmock.h>

#include <set>
#include <tuple>

#include "conformance.h"
#include "fusedbun/core/error.h"
#include "memory_transport.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<World> make_world(int size, MemoryFaults faults,
                                  std::chrono::milliseconds timeout) {
  auto transports = make_memory_transports(size, faults);
  return std::make_unique<ThreadWorld>(size, [&](int rank) {
    return make_message_communicator(std::move(transports[static_cast<size_t>(rank)]), timeout);
  });
}

std::vector<WorldFactory> memory_worlds(const std::string& name, const std::vector<int>& sizes,
                                        MemoryFaults faults = {}) {
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back(
        {name + std::to_string(size), [size, faults](std::chrono::milliseconds timeout) {
           return make_world(size, faults, timeout);
         }});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Memory, Conformance,
                         ::testing::ValuesIn(memory_worlds("memory", {1, 2, 3, 5, 8})), kName);
INSTANTIATE_TEST_SUITE_P(Delayed, Conformance,
                         ::testing::ValuesIn(memory_worlds("delayed", {3}, {.delay_us_max = 300})),
                         kName);
INSTANTIATE_TEST_SUITE_P(Memory, Breakage, ::testing::ValuesIn(memory_worlds("memory", {2, 3})),
                         kName);

// What rank `rank` is told when an all_reduce meets this fault.
std::string error_on(int rank, MemoryFaults faults) {
  const auto world = make_world(3, faults, std::chrono::seconds(10));
  std::string text;
  world->run([&](Communicator& comm) {
    Array<float> data(*world, 100, 1.0f);
    try {
      comm.all_reduce(data.all(), ReduceOp::sum).wait();
    } catch (const PeerLostError& error) {
      if (comm.rank() == rank) text = error.what();
    }
    comm.abort("the test is over");  // nobody waits for a broken rank
  });
  return text;
}

TEST(MessageCommunicator, AFailureNamesRankOperationPeerAndWhatToDo) {
  const std::string text = error_on(1, {.lose_messages_to = 1});
  EXPECT_THAT(
      text,
      HasSubstr(
          "memory: rank 1 of 3 in all_reduce(f32, 100, sum) (operation 0): receiving from rank 0 "
          "failed (lost on purpose)"));
  EXPECT_THAT(text, HasSubstr("start the job again"));
}

TEST(MessageCommunicator, AMessageThatCannotStartIsAFailureOfTheWait) {
  EXPECT_THAT(error_on(2, {.refuse_start_on = 2}), HasSubstr("refused on purpose"));
}

TEST(MessageCommunicator, ATimeoutNamesThePeer) {
  auto transports = make_memory_transports(2);
  const auto comm =
      make_message_communicator(std::move(transports[0]), std::chrono::milliseconds(50));
  try {
    comm->barrier().wait();
    ADD_FAILURE() << "the barrier ended without rank 1";
  } catch (const TimeoutError& error) {
    EXPECT_THAT(error.what(), HasSubstr("not done after 50 ms, waiting for rank 1"));
  }
}

TEST(MessageCommunicator, GroupsShareTheFateOfTheirConnections) {
  const auto world = make_world(2, {}, std::chrono::seconds(10));
  world->run([&](Communicator& comm) {
    const auto group = comm.group({1, 0});
    comm.barrier().wait();
    if (comm.rank() == 0) group->abort("the group gave up");
    EXPECT_THROW(group->barrier().wait(), PeerLostError);
    EXPECT_THROW(comm.barrier().wait(), PeerLostError);
  });
}

// Invariant 1 of rounds.h: what one rank sends is what the other expects, for every operation, world and count.
TEST(Rounds, SendsAndReceivesMatch) {
  for (int size = 1; size <= 9; ++size) {
    Counts counts;
    int64_t total = 0;
    for (int r = 0; r < size; ++r) total += counts.emplace_back((r * 7) % 4);
    std::vector<std::byte> memory(400'000);
    for (int variant = 0; variant < 5 + size; ++variant) {
      std::multiset<std::tuple<int, int, int64_t>> sent;  // from, to, bytes
      std::multiset<std::tuple<int, int, int64_t>> received;
      for (int rank = 0; rank < size; ++rank) {
        const Caller caller{"memory", rank, size};
        const Buffer all{memory.data(), total, DataType::f32};
        const Buffer mine{memory.data(), counts[static_cast<size_t>(rank)], DataType::f32};
        const Call calls[] = {
            Call::reduce_scatter(caller, all, mine, counts),
            Call::all_gather(caller, mine, all, counts),
            Call::all_reduce(caller, {memory.data(), 5, DataType::f64}, ReduceOp::sum),
            Call::all_reduce(caller, {memory.data(), 30'001, DataType::f64}, ReduceOp::sum),
            Call::barrier()};
        const Call call =
            variant < 5 ? calls[variant]
                        : Call::broadcast(caller, {memory.data(), 9, DataType::u8}, variant - 5);
        for (const Round& round : rounds_of(call, rank, size)) {
          for (const Message& each : round.sends) sent.insert({rank, each.peer, each.bytes});
          for (const Message& each : round.receives) received.insert({each.peer, rank, each.bytes});
        }
      }
      EXPECT_EQ(sent, received) << "size " << size << " variant " << variant;
      EXPECT_EQ(sent.empty(), size == 1);
    }
  }
}

}  // namespace
}  // namespace fusedbun::comm::testing

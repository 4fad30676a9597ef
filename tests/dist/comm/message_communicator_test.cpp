#include "fusedbun/dist/comm/message_communicator.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <functional>
#include <future>
#include <set>
#include <stdexcept>
#include <tuple>

#include "conformance.h"
#include "fusedbun/core/error.h"
#include "memory_transport.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::ContainsRegex;
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
                         ::testing::ValuesIn(memory_worlds("memory", {1, 2, 3, 5, 8, 11})), kName);
INSTANTIATE_TEST_SUITE_P(Delayed, Conformance,
                         ::testing::ValuesIn(memory_worlds("delayed", {3}, {.delay_us_max = 300})),
                         kName);
INSTANTIATE_TEST_SUITE_P(Memory, Breakage, ::testing::ValuesIn(memory_worlds("memory", {2, 3})),
                         kName);

TEST(MessageCommunicator, CountsTheBytesOfItsMessagesAndOfItsGroups) {
  const auto world = make_world(3, {}, std::chrono::seconds(10));
  world->run([&](Communicator& comm) {
    const int next = (comm.rank() + 1) % 3, previous = (comm.rank() + 2) % 3;
    const auto sizes = std::to_array<int64_t>({100, 20'000, 3});
    std::vector<std::byte> out(20'000), in(20'000);
    const auto send_around = [&](Communicator& ring) {
      ring.exchange({{next, out.data(), sizes[static_cast<size_t>(comm.rank())]}},
                    {{previous, in.data(), sizes[static_cast<size_t>(previous)]}})
          .wait();
    };
    EXPECT_EQ(comm.sent_bytes(), std::optional<int64_t>(0));
    send_around(comm);
    EXPECT_EQ(comm.sent_bytes(), std::optional(sizes[static_cast<size_t>(comm.rank())]));
    const auto group = comm.group({0, 1, 2});  // its ranks agree on it by messages
    const int64_t before = *comm.sent_bytes();
    send_around(*group);
    EXPECT_EQ(*comm.sent_bytes() - before, sizes[static_cast<size_t>(comm.rank())]);
  });
}

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
  EXPECT_THAT(text,
              ContainsRegex("memory: rank [012] of 3 in all_reduce.f32, 100, sum. .operation 0.: "
                            "receiving from rank [01] failed .lost on purpose."))
      << "its own finding, or what another rank told it";
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

TEST(MessageCommunicator, ADeadlineCountsFromTheLastMessageThatMoved) {
  const auto world = make_world(2, {.packet_delay = std::chrono::milliseconds(100)},
                                std::chrono::milliseconds(400));
  world->run([&](Communicator& comm) {
    std::vector<std::byte> memory(10);
    std::vector<Message> messages;
    for (std::byte& each : memory) messages.push_back({1 - comm.rank(), &each, 1});
    const auto begin = Clock::now();
    Work first = comm.exchange(messages, messages);
    Work second = comm.barrier();  // waits for the exchange, and longer than its own deadline
    second.wait();
    first.wait();
    EXPECT_GT(Clock::now() - begin, std::chrono::milliseconds(900));
  });
}

TEST(MessageCommunicator, ARankThatLeftIsNamed) {
  auto transports = make_memory_transports(2);
  auto stays = std::async(std::launch::async, [&]() -> std::string {
    const auto comm = make_message_communicator(std::move(transports[0]), std::chrono::seconds(30));
    comm->barrier().wait();
    try {
      comm->barrier().wait();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no ConfigError";
  });
  make_message_communicator(std::move(transports[1]), std::chrono::seconds(30))->barrier().wait();
  EXPECT_THAT(stays.get(),
              HasSubstr("rank 1 left after barrier (operation 0) where rank 0 called barrier "
                        "(operation 1)"));
}

TEST(MessageCommunicator, AnErrorThatUnwindsARankIsAPeerLostOnTheOthers) {
  const auto comms =
      std::make_shared<std::vector<std::unique_ptr<Transport>>>(make_memory_transports(2));
  auto stays = std::async(std::launch::async, [comms]() -> std::string {
    const auto comm = make_message_communicator(std::move((*comms)[0]), std::chrono::seconds(30));
    try {
      comm->barrier().wait();
      comm->barrier().wait();
    } catch (const PeerLostError& error) {
      return error.what();
    }
    return "no PeerLostError";
  });
  try {
    const auto comm = make_message_communicator(std::move((*comms)[1]), std::chrono::seconds(30));
    comm->barrier().wait();
    throw std::runtime_error("the caller's own trouble");
  } catch (const std::runtime_error&) {
  }
  EXPECT_THAT(stays.get(), HasSubstr("rank 1 gave up: it left with an exception"));
}

// Invariant 1 of rounds.h: what one rank sends is what the other expects, for every operation, world and count.
TEST(Rounds, SendsAndReceivesMatch) {
  for (const int size : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 17, 33}) {
    Counts counts;
    int64_t total = 0;
    for (int r = 0; r < size; ++r) total += counts.emplace_back((r * 7) % 4);
    std::vector<std::byte> memory(400'000);
    for (int variant = 0; variant < 6 + size; ++variant) {
      std::multiset<std::tuple<int, int, int64_t>> sent;  // from, to, bytes
      std::multiset<std::tuple<int, int, int64_t>> received;
      for (int rank = 0; rank < size; ++rank) {
        const CallSite caller{"memory", rank, size};
        const Buffer all{memory.data(), total, DataType::f32};
        const Buffer mine{memory.data(), counts[static_cast<size_t>(rank)], DataType::f32};
        const CollectiveCall calls[] = {
            CollectiveCall::reduce_scatter(caller, all, mine, counts),
            CollectiveCall::all_gather(caller, mine, all, counts),
            CollectiveCall::all_reduce(caller, {memory.data(), 5, DataType::f64}, ReduceOp::sum),
            CollectiveCall::all_reduce(caller, {memory.data(), 5, DataType::i64}, ReduceOp::max),
            CollectiveCall::all_reduce(caller, {memory.data(), 30'001, DataType::f64},
                                       ReduceOp::sum),
            CollectiveCall::barrier()};
        const CollectiveCall call =
            variant < 6
                ? calls[variant]
                : CollectiveCall::broadcast(caller, {memory.data(), 9, DataType::u8}, variant - 6);
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

// The most that one rank sends in an operation, from the schedules of all ranks.
struct Most {
  int64_t messages = 0;
  int64_t bytes = 0;
};
Most most_of(int size, const std::function<CollectiveCall(const CallSite&)>& call_of) {
  Most most;
  for (int rank = 0; rank < size; ++rank) {
    Most mine;
    for (const Round& round : rounds_of(call_of({"memory", rank, size}), rank, size)) {
      for (const Message& message : round.sends) {
        ++mine.messages;
        mine.bytes += message.bytes;
      }
    }
    most.messages = std::max(most.messages, mine.messages);
    most.bytes = std::max(most.bytes, mine.bytes);
  }
  return most;
}

// log2, rounded up: of 2 to 1,024 ranks 1 to 10.
int steps_of(int size) {
  return std::bit_width(static_cast<unsigned>(size - 1));
}

TEST(Rounds, MessagesOfShortOperationsGrowWithTheLogarithmOfTheRanks) {
  constexpr int64_t kBytes = 8 * 1000;
  std::vector<std::byte> memory(kBytes * 1024);
  for (const int size : {2, 3, 8, 9, 16, 64, 100, 512, 1000, 1024}) {
    const int steps = size <= kDirectRanks ? size - 1 : steps_of(size);
    const Buffer number{memory.data(), 1000, DataType::f64};
    const Most sum = most_of(size, [&](const CallSite& caller) {
      return CollectiveCall::all_reduce(caller, number, ReduceOp::sum);
    });
    EXPECT_LE(sum.messages, steps)
        << size;  // down; rank 0, which has the most children, sends nothing up
    EXPECT_LE(sum.bytes, std::max<int64_t>(steps, size / 2 + steps) * kBytes) << size;
    const Most max = most_of(size, [&](const CallSite& caller) {
      return CollectiveCall::all_reduce(caller, {memory.data(), 1000, DataType::i64},
                                        ReduceOp::max);
    });
    EXPECT_EQ(max.messages, steps) << size;
    EXPECT_EQ(max.bytes, steps * kBytes) << size;
    const Most barrier = most_of(size, [](const CallSite&) { return CollectiveCall::barrier(); });
    EXPECT_EQ(barrier.messages, steps) << size;
    EXPECT_EQ(barrier.bytes, steps) << size;
    const Most gather = most_of(size, [&](const CallSite& caller) {
      return CollectiveCall::all_gather(caller, {memory.data(), kBytes, DataType::u8},
                                        {memory.data(), kBytes * size, DataType::u8},
                                        Counts(size, kBytes));
    });
    EXPECT_LE(gather.messages, size <= kDirectRanks ? steps : 2 * steps)
        << size;  // two around the end
    EXPECT_EQ(gather.bytes, (size - 1) * kBytes) << size;
  }
}

TEST(MessageCommunicator, SixtyFourRanksAddCompareGatherAndMeet) {
  constexpr int kRanks = 64;
  const auto world = make_world(kRanks, {}, std::chrono::seconds(60));
  std::atomic<int> entered{0};
  world->run([&](Communicator& comm) {
    // Sums of these depend on the order.
    const auto part = [](int rank) { return 0.1f * static_cast<float>(1 << (rank % 23)) + 1e-3f; };
    float expected = part(0);
    for (int rank = 1; rank < kRanks; ++rank) expected += part(rank);
    float sum = part(comm.rank());
    comm.all_reduce({&sum, 1, DataType::f32}, ReduceOp::sum).wait();
    EXPECT_EQ(sum, expected);
    int64_t largest = (comm.rank() * 37) % kRanks;
    comm.all_reduce({&largest, 1, DataType::i64}, ReduceOp::max).wait();
    EXPECT_EQ(largest, kRanks - 1);
    int32_t mine = comm.rank() * 3;
    std::vector<int32_t> all(kRanks);
    comm.all_gather({&mine, 1, DataType::i32}, {all.data(), kRanks, DataType::i32},
                    Counts(kRanks, 1))
        .wait();
    for (int rank = 0; rank < kRanks; ++rank) EXPECT_EQ(all[static_cast<size_t>(rank)], rank * 3);
    ++entered;
    comm.barrier().wait();
    EXPECT_EQ(entered, kRanks);
    comm.barrier().wait();
  });
}

}  // namespace
}  // namespace fusedbun::comm::testing

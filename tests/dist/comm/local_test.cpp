#include "fusedbun/dist/comm/local.h"

#include <mutex>

#include "conformance.h"
#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

std::vector<WorldFactory> local_worlds(const std::vector<int>& sizes) {
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back({"local" + std::to_string(size), [size](std::chrono::milliseconds timeout) {
                           auto ranks = make_local_communicators(size, timeout);
                           return std::make_unique<ThreadWorld>(size, [&](int rank) {
                             return std::move(ranks[static_cast<size_t>(rank)]);
                           });
                         }});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Local, Conformance, ::testing::ValuesIn(local_worlds({1, 2, 3, 4, 7, 8})),
                         kName);
INSTANTIATE_TEST_SUITE_P(Local, Breakage, ::testing::ValuesIn(local_worlds({2, 3, 8})), kName);

// Runs rank 0's and rank 1's bodies at the same time and returns what each threw.
std::vector<std::string> errors_of(const std::function<void(Communicator&)>& rank0,
                                   const std::function<void(Communicator&)>& rank1) {
  auto ranks = make_local_communicators(2, std::chrono::seconds(10));
  std::vector<std::string> errors(2);
  run_threads(2, [&](int rank) {
    try {
      (rank == 0 ? rank0 : rank1)(*ranks[static_cast<size_t>(rank)]);
    } catch (const ConfigError& error) {
      errors[static_cast<size_t>(rank)] = error.what();
    }
  });
  return errors;
}

TEST(Local, MismatchedOperationsNameBothRanksAndOperations) {
  float x = 0;
  const auto errors = errors_of(
      [](Communicator& comm) { comm.barrier().wait(); },
      [&](Communicator& comm) { comm.broadcast(Buffer::of(std::span(&x, 1)), 0).wait(); });
  for (const std::string& error : errors) {
    EXPECT_NE(error.find("barrier"), std::string::npos) << error;
    EXPECT_NE(error.find("broadcast(f32, 1, root 0)"), std::string::npos) << error;
    EXPECT_NE(error.find("rank 0"), std::string::npos) << error;
    EXPECT_NE(error.find("rank 1"), std::string::npos) << error;
  }
}

TEST(Local, MismatchedCountsAreRefused) {
  std::vector<float> data(8);
  const auto gather = [&](Counts counts) {
    return [&, counts](Communicator& comm) {
      comm.all_gather(Buffer::of(std::span(data).first(counts[comm.rank()])),
                      Buffer::of(std::span(data).first(counts[0] + counts[1])), counts)
          .wait();
    };
  };
  const auto errors = errors_of(gather({1, 2}), gather({1, 3}));
  for (const std::string& error : errors)
    EXPECT_NE(error.find("counts 1 3"), std::string::npos) << error;
}

TEST(Local, MismatchedMessagesAreRefused) {
  std::byte data[8];
  const auto exchange = [&](std::vector<Message> sends, std::vector<Message> receives) {
    return [=](Communicator& comm) { comm.exchange(sends, receives).wait(); };
  };
  for (const auto& errors :
       {errors_of(exchange({{1, data, 2}}, {}), exchange({}, {{0, data, 3}})),
        errors_of(exchange({}, {{1, data, 2}}), exchange({{0, data, 1}, {0, data, 1}}, {}))}) {
    for (const std::string& error : errors)
      EXPECT_NE(error.find("called exchange("), std::string::npos) << error;
  }
}

TEST(Local, GroupListsMustBeEqual) {
  const auto ranks = make_local_communicators(2);
  EXPECT_NE(ranks[0]->group({0}), nullptr);
  EXPECT_THROW(ranks[1]->group({1}), ConfigError);
}

TEST(Local, TimeoutNamesTheRanksThatDidNotCome) {
  auto ranks = make_local_communicators(3, std::chrono::milliseconds(50));
  Work first = ranks[0]->barrier();
  Work second = ranks[1]->barrier();
  try {
    first.wait();
    ADD_FAILURE() << "the barrier ended without rank 2";
  } catch (const TimeoutError& error) {
    EXPECT_NE(std::string(error.what()).find("which rank 2 did not join"), std::string::npos)
        << error.what();
  }
  EXPECT_THROW(second.wait(), TimeoutError);
  EXPECT_THROW(ranks[2]->barrier().wait(), TimeoutError)
      << "the late rank learns that it is too late";
}

TEST(Local, OneRankOnAGpuMovesNothing) {
  const auto rank = make_single_gpu_communicator();
  EXPECT_EQ(rank->device(), DeviceKind::cuda);
  std::vector<float> memory{1, 2}, elsewhere{3, 4};
  const Buffer all = Buffer::of(std::span(memory));
  rank->reduce_scatter(all, all, {2}).wait();
  rank->all_gather(all, all, {2}).wait();
  rank->group({0})->all_reduce(all, ReduceOp::sum).wait();
  EXPECT_EQ(memory, (std::vector<float>{1, 2}));
  EXPECT_THROW(rank->all_gather(all, Buffer::of(std::span(elsewhere)), {2}), ConfigError);
  rank->abort("for a reason");
  EXPECT_THROW(rank->all_reduce(all, ReduceOp::sum), PeerLostError);
}

TEST(Local, NeedsARank) {
  EXPECT_THROW(make_local_communicators(0), ConfigError);
}

}  // namespace
}  // namespace fusedbun::comm::testing

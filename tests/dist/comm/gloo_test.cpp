#include "fusedbun/dist/comm/gloo.h"

#include <gmock/gmock.h>

#include "conformance.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo_address.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::HasSubstr;

// Its store is served as long as it lives: groups are made through it.
class GlooWorld final : public ThreadWorld {
 public:
  GlooWorld(int size, std::shared_ptr<StoreServer> store, std::chrono::milliseconds timeout)
      : ThreadWorld(size,
                    [&](int rank) {
                      return connect_gloo({.rank = rank,
                                           .size = size,
                                           .master_port = store->port(),
                                           .serve_store = false,
                                           .timeout = timeout});
                    }),
        store_(store) {}

 private:
  std::shared_ptr<StoreServer> store_;
};

std::unique_ptr<World> make_gloo_world(int size, std::chrono::milliseconds timeout) {
  return std::make_unique<GlooWorld>(size, serve_store("127.0.0.1", 0), timeout);
}

std::vector<WorldFactory> gloo_worlds(const std::vector<int>& sizes) {
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back({"gloo" + std::to_string(size), [size](std::chrono::milliseconds timeout) {
                           return make_gloo_world(size, timeout);
                         }});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Gloo, Conformance, ::testing::ValuesIn(gloo_worlds({1, 2, 3, 4})), kName);
INSTANTIATE_TEST_SUITE_P(Gloo, Breakage, ::testing::ValuesIn(gloo_worlds({2, 3})), kName);

// The message of the Error of this kind that `call` throws.
template <class ErrorType>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ErrorType& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(Gloo, APortThatIsTakenIsNamed) {
  const auto store = serve_store("127.0.0.1", 0);
  const std::string address = "127.0.0.1:" + std::to_string(store->port());
  EXPECT_THAT(message_of<UnavailableError>([&] { connect_gloo({.master_port = store->port()}); }),
              HasSubstr(address));
  EXPECT_THROW(serve_store("127.0.0.1", store->port()), UnavailableError);
}

TEST(Gloo, AnUnreachableStoreIsReportedWithinTheTimeout) {
  const uint16_t port = serve_store("127.0.0.1", 0)->port();  // free again
  const auto begin = std::chrono::steady_clock::now();
  const std::string message = message_of<UnavailableError>([&] {
    connect_gloo(
        {.rank = 1, .size = 2, .master_port = port, .timeout = std::chrono::milliseconds(500)});
  });
  EXPECT_THAT(message, HasSubstr("gloo: rank 1 of 2 cannot reach the store at 127.0.0.1:" +
                                 std::to_string(port)));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(Gloo, MissingRanksAreNamed) {
  const std::string message = message_of<TimeoutError>([] {
    const auto store = serve_store("127.0.0.1", 0);
    connect_gloo({.rank = 1,
                  .size = 4,
                  .master_port = store->port(),
                  .serve_store = false,
                  .timeout = std::chrono::milliseconds(300)});
  });
  EXPECT_THAT(message, HasSubstr("missing: 0 2 3"));
}

// Two processes that come to one store; what the second is told.
std::string second_visitor(const GlooOptions& first, const GlooOptions& second) {
  const auto store = serve_store("127.0.0.1", 0);
  const auto visit = [&](GlooOptions options) {
    options.master_port = store->port();
    options.serve_store = false;
    options.timeout = std::chrono::milliseconds(300);
    connect_gloo(options);
  };
  EXPECT_THROW(visit(first), TimeoutError);
  return message_of<ConfigError>([&] { visit(second); });
}

TEST(Gloo, RanksThatDisagreeAboutTheSizeAreRefused) {
  EXPECT_THAT(second_visitor({.rank = 0, .size = 2}, {.rank = 1, .size = 3}),
              HasSubstr("which has 2 ranks"));
}

// The first one sets the size, so rank 0, with which the store goes, is the one refused in about half of the
// rounds.
TEST(Gloo, RanksThatDisagreeAllLeaveWithOneSentence) {
  for (int round = 0; round < 6; ++round) {
    const uint16_t port = serve_store("127.0.0.1", 0)->port();
    std::vector<std::string> told(2);
    run_threads(2, [&](int rank) {
      told[rank] = message_of<ConfigError>(
          [&] { connect_gloo({.rank = rank, .size = 2 + rank, .master_port = port}); });
    });
    EXPECT_THAT(told[0], HasSubstr("start all ranks with one size"));
    EXPECT_EQ(told[0], told[1]);
  }
}

TEST(Gloo, TwoProcessesWithOneRankAreRefused) {
  EXPECT_THAT(second_visitor({.rank = 1, .size = 2}, {.rank = 1, .size = 2}),
              HasSubstr("two processes have this rank"));
}

TEST(Gloo, RunsOnOneStoreDoNotMix) {
  const auto store = serve_store("127.0.0.1", 0);
  run_threads(4, [&](int index) {
    const auto comm = connect_gloo({.rank = index % 2,
                                    .size = 2,
                                    .master_port = store->port(),
                                    .serve_store = false,
                                    .run_id = index < 2 ? "one" : "two"});
    int64_t sum = index;
    comm->all_reduce({&sum, 1, DataType::i64}, ReduceOp::sum).wait();
    EXPECT_EQ(sum, index < 2 ? 1 : 5);
    comm->barrier().wait();
  });
}

TEST(Gloo, ALongMessageOnAGroupDoesNotDelayAShortOneOnItsParent) {
  const auto world = make_gloo_world(2, std::chrono::seconds(30));
  world->run([&](Communicator& comm) {
    const auto group = comm.group({0, 1});
    constexpr int64_t kBytes = 256 << 20;
    std::vector<std::byte> sent(kBytes);
    std::vector<std::byte> received(kBytes);
    const int peer = 1 - comm.rank();
    group->barrier().wait();
    Work bulk = group->exchange({{peer, sent.data(), kBytes}}, {{peer, received.data(), kBytes}});
    const auto small_ended = comm.barrier().wait();
    EXPECT_LT(small_ended, bulk.wait());
  });
}

TEST(Gloo, ARankThatLeftIsNamed) {
  const auto store = serve_store("127.0.0.1", 0);
  run_threads(2, [&](int rank) {
    const auto comm =
        connect_gloo({.rank = rank, .size = 2, .master_port = store->port(), .serve_store = false});
    comm->barrier().wait();
    if (rank == 1) return;
    EXPECT_THAT(message_of<ConfigError>([&] { comm->barrier().wait(); }),
                HasSubstr("rank 1 left after barrier (operation 1) where rank 0 called barrier "
                          "(operation 2)"));
  });
}

TEST(Gloo, RankZeroServesTheStore) {
  const uint16_t port = serve_store("127.0.0.1", 0)->port();
  run_threads(2, [&](int rank) {
    const auto comm =
        connect_gloo({.rank = rank, .size = 2, .master_addr = "localhost", .master_port = port});
    comm->barrier().wait();
  });
}

TEST(Gloo, ARankOutsideTheWorldIsRefused) {
  EXPECT_THROW(connect_gloo({.rank = 2, .size = 2}), ConfigError);
}

TEST(Gloo, AddressesKnowLoopback) {
  EXPECT_TRUE(is_loopback("localhost"));
  EXPECT_TRUE(is_loopback("127.0.1.1"));
  EXPECT_FALSE(is_loopback("10.0.0.1"));
  EXPECT_EQ(local_address_towards("localhost", {}), "127.0.0.1");
  EXPECT_THROW(local_address_towards("no.such.host.invalid", {}), UnavailableError);
}

}  // namespace
}  // namespace fusedbun::comm::testing

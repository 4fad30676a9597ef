// Small objects, texts and errors between ranks that are threads.
#include "fusedbun/dist/comm/object_collectives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <typeindex>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/tests/dist/comm/world.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

void on_ranks(int size, const std::function<void(Communicator&)>& body) {
  auto ranks = make_local_communicators(size, std::chrono::seconds(10));
  run_threads(size, [&](int rank) { body(*ranks[static_cast<size_t>(rank)]); });
}

/// "<code>: <sentence>" of what `body` threw on each rank; empty: nothing.
std::vector<std::string> errors_of(int size, const std::function<void(Communicator&)>& body) {
  std::vector<std::string> errors(static_cast<size_t>(size));
  on_ranks(size, [&](Communicator& host) {
    try {
      body(host);
    } catch (const Error& error) {
      errors[static_cast<size_t>(host.rank())] =
          std::to_string(static_cast<int>(error.code())) + ": " + error.what();
    }
  });
  return errors;
}

TEST(ObjectCollectives, AnObjectOfEveryRankReachesAll) {
  struct Pair {
    int32_t rank;
    double value;
  };
  on_ranks(3, [](Communicator& host) {
    const auto all = all_gather_object(host, Pair{host.rank(), 0.5 * host.rank()});
    ASSERT_EQ(all.size(), 3U);
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(all[static_cast<size_t>(rank)].rank, rank);
      EXPECT_EQ(all[static_cast<size_t>(rank)].value, 0.5 * rank);
    }
  });
}

TEST(ObjectCollectives, TheRootsObjectReachesAll) {
  on_ranks(3, [](Communicator& host) {
    for (int root = 0; root < 3; ++root) {
      EXPECT_EQ(broadcast_object(host, 10 + host.rank(), root), 10 + root);
    }
  });
}

TEST(ObjectCollectives, TextsOfAnyLengthAndBytesReachAll) {
  const std::string with_zero("a\0b\n", 4);
  const std::string longer(100'000, 'x');
  on_ranks(3, [&](Communicator& host) {
    const std::string mine = host.rank() == 0 ? with_zero : host.rank() == 1 ? "" : longer;
    EXPECT_THAT(all_gather_text(host, mine), ElementsAre(with_zero, "", longer));
    EXPECT_THAT(all_gather_text(host, ""), ElementsAre("", "", ""));
    EXPECT_EQ(broadcast_text(host, mine, 2), longer);
    EXPECT_EQ(broadcast_text(host, mine, 1), "");
    EXPECT_THAT(broadcast_texts(host, {mine, "", "end"}, 0), ElementsAre(with_zero, "", "end"));
    EXPECT_THAT(broadcast_texts(host, {}, 0), IsEmpty());
  });
}

TEST(ObjectCollectives, EqualLinesPassOnAllRanks) {
  const std::vector<std::string> lines{"weight [2, 3]", "", "a\nb"};
  EXPECT_THAT(
      errors_of(3, [&](Communicator& host) { verify_equal_across_ranks(host, lines, "x"); }),
      Each(IsEmpty()));
}

TEST(ObjectCollectives, TheFirstRankAndLineThatDifferAreNamedOnAllRanks) {
  const std::string long_line(1000, 'w');
  const auto errors = errors_of(3, [&](Communicator& host) {
    std::vector<std::string> lines{"same", "weight [2, 3]"};
    if (host.rank() == 1) lines[1] = long_line;
    if (host.rank() == 2) lines[0] = "other";
    verify_equal_across_ranks(host, lines, "build the same model");
  });
  EXPECT_THAT(errors, Each("78: rank 1 has '" + long_line +
                           "' where rank 0 has 'weight [2, 3]': build the same model"));
}

TEST(ObjectCollectives, AMissingOrExtraLineDiffers) {
  const auto lines_by_rank = [](std::vector<std::string> first, std::vector<std::string> second) {
    return [=](Communicator& host) {
      verify_equal_across_ranks(host, host.rank() == 0 ? first : second, "advice");
    };
  };
  EXPECT_THAT(errors_of(2, lines_by_rank({"a", "b"}, {"a"})),
              Each("78: rank 1 has nothing where rank 0 has 'b': advice"));
  EXPECT_THAT(errors_of(2, lines_by_rank({"a"}, {"a", ""})),
              Each("78: rank 1 has '' where rank 0 has nothing: advice"));
  EXPECT_THAT(errors_of(2, lines_by_rank({"ab"}, {"a", "b"})),
              Each("78: rank 1 has 'a' where rank 0 has 'ab': advice"));
}

TEST(ObjectCollectives, AnErrorOfAnyRankIsThrownByAll) {
  EXPECT_THAT(errors_of(3,
                        [](Communicator& host) {
                          rethrow_on_all_ranks(host, [] {});
                          rethrow_on_all_ranks(host, [&] {
                            if (host.rank() == 2) throw IoError("later");
                            if (host.rank() == 1) throw UnavailableError("the folder is in use");
                          });
                        }),
              Each("69: the folder is in use"));
  EXPECT_THAT(errors_of(2,
                        [](Communicator& host) {
                          rethrow_on_all_ranks(host, [&] {
                            if (host.rank() == 1) throw std::out_of_range("at");
                          });
                        }),
              Each("1: at"));
}

TEST(ObjectCollectives, AnErrorKeepsItsTypeOnEveryRank) {
  const std::vector<std::pair<ExitCode, std::type_index>> types{
      {ExitCode::usage, typeid(UsageError)},
      {ExitCode::data, typeid(DataError)},
      {ExitCode::unavailable, typeid(UnavailableError)},
      {ExitCode::device, typeid(DeviceError)},
      {ExitCode::io, typeid(IoError)},
      {ExitCode::peer_lost, typeid(PeerLostError)},
      {ExitCode::permission, typeid(PermissionError)},
      {ExitCode::config, typeid(ConfigError)},
      {ExitCode::diverged, typeid(DivergedError)},
      {ExitCode::timeout, typeid(TimeoutError)},
      {ExitCode::internal, typeid(Error)},
  };
  on_ranks(2, [&](Communicator& host) {
    for (const auto& [code, type] : types) {
      try {
        rethrow_on_all_ranks(host, [&, code = code] {
          if (host.rank() == 0) throw Error(code, "x");
        });
        ADD_FAILURE() << "nothing was thrown on rank " << host.rank();
      } catch (const Error& error) {
        EXPECT_TRUE(std::type_index(typeid(error)) == type)
            << "rank " << host.rank() << ", code " << static_cast<int>(code);
      }
    }
  });
}

}  // namespace
}  // namespace fusedbun::comm::testing

#include "conformance.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>
#include <type_traits>
#include <vector>

#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

// What rank `rank` contributes as element `index` of an operation. Floating-point values differ so much in size that
// their sum depends on the order; with `exact`, small integers whose sum does not.
template <class T>
T contribution(int rank, int64_t index, bool exact) {
  uint64_t bits =
      (static_cast<uint64_t>(rank) << 40) + static_cast<uint64_t>(index) + 0x9e3779b97f4a7c15ull;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
  bits ^= bits >> 31;
  if constexpr (std::is_floating_point_v<T>) {
    if (exact) return static_cast<T>(static_cast<int64_t>(bits % 2001) - 1000);
    const auto fraction = static_cast<T>(1.0 + static_cast<double>(bits >> 12) * 0x1p-52);
    const int exponent = static_cast<int>(bits % 41) - 20;
    return std::ldexp((bits & 64) != 0 ? fraction : -fraction, exponent);
  } else if constexpr (sizeof(T) == 1) {
    return static_cast<T>(bits);
  } else {
    return static_cast<T>(static_cast<int64_t>(bits % 2000001) - 1000000);
  }
}

// Per-rank counts that are uneven, with an empty portion as soon as there are two ranks.
Counts uneven_counts(int size, int64_t scale) {
  Counts counts;
  for (int r = 0; r < size; ++r) counts.push_back(r == 1 ? 0 : scale + 3 * r);
  return counts;
}

int64_t total(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}
int64_t offset(const Counts& counts, int rank) {
  return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
}

template <class T>
std::vector<T> contributions(int rank, int64_t count, bool exact) {
  std::vector<T> elements;
  for (int64_t i = 0; i < count; ++i) elements.push_back(contribution<T>(rank, i, exact));
  return elements;
}

// The dumb loop that every sum is compared with, bit for bit.
template <class T>
T sum_at(int size, int64_t index, bool exact) {
  T sum = contribution<T>(0, index, exact);
  for (int r = 1; r < size; ++r) sum = static_cast<T>(sum + contribution<T>(r, index, exact));
  return sum;
}

template <class T>
T max_at(int size, int64_t index) {
  T largest = contribution<T>(0, index, false);
  for (int r = 1; r < size; ++r) largest = std::max(largest, contribution<T>(r, index, false));
  return largest;
}

template <class T>
std::vector<T> sums(int size, int64_t count, bool exact) {
  std::vector<T> elements;
  for (int64_t i = 0; i < count; ++i) elements.push_back(sum_at<T>(size, i, exact));
  return elements;
}

// Equal bit for bit (the values hold no NaN and no zero of two signs); tells the first difference.
template <class T>
void expect_equal(const std::vector<T>& result, const std::vector<T>& expected,
                  const Communicator& comm) {
  const auto [difference, other] =
      std::mismatch(result.begin(), result.end(), expected.begin(), expected.end());
  if (difference == result.end() && other == expected.end()) return;
  ADD_FAILURE() << "rank " << comm.rank() << " of " << comm.size() << ", element "
                << difference - result.begin() << " of " << result.size() << ": "
                << ::testing::PrintToString(*difference) << " instead of "
                << ::testing::PrintToString(*other);
}

template <class T>
std::vector<T> slice_of(const std::vector<T>& elements, int64_t offset, int64_t count) {
  return {elements.begin() + offset, elements.begin() + offset + count};
}

template <class T>
void expect_reduce_scatter(World& world, const Counts& counts, bool in_place) {
  const bool exact = !world.adds_in_rank_order();
  const auto expected = sums<T>(world.size(), total(counts), exact);
  world.run([&](Communicator& comm) {
    const int64_t mine = counts[comm.rank()];
    const int64_t first = offset(counts, comm.rank());
    Array<T> input(world, contributions<T>(comm.rank(), total(counts), exact));
    Array<T> separate(world, mine, T{77});
    const Buffer output = in_place ? input.part(first, mine) : separate.all();
    comm.reduce_scatter(input.all(), output, counts).wait();
    expect_equal(in_place ? input.read(first, mine) : separate.read(),
                 slice_of(expected, first, mine), comm);
  });
}

template <class T>
void expect_all_gather(World& world, const Counts& counts, bool in_place) {
  std::vector<T> expected;
  for (int r = 0; r < world.size(); ++r) {
    const auto elements = contributions<T>(r, counts[r], false);
    expected.insert(expected.end(), elements.begin(), elements.end());
  }
  world.run([&](Communicator& comm) {
    const int64_t mine = counts[comm.rank()];
    const int64_t first = offset(counts, comm.rank());
    Array<T> input(world, slice_of(expected, first, mine));
    std::vector<T> before(expected.size(), T{77});
    if (in_place) std::copy_n(expected.begin() + first, mine, before.begin() + first);
    Array<T> output(world, before);
    comm.all_gather(in_place ? output.part(first, mine) : input.all(), output.all(), counts).wait();
    expect_equal(output.read(), expected, comm);
  });
}

template <class T>
void expect_all_reduce(World& world, int64_t count, ReduceOp op) {
  const bool exact = !world.adds_in_rank_order();
  auto expected = sums<T>(world.size(), count, exact);
  for (int64_t i = 0; i < count && op == ReduceOp::max; ++i)
    expected[i] = max_at<T>(world.size(), i);
  if constexpr (std::is_integral_v<T>) {
    for (int64_t i = 0; i < count && op == ReduceOp::bit_or; ++i) {
      expected[i] = 0;
      for (int r = 0; r < world.size(); ++r) {
        expected[i] = static_cast<T>(expected[i] | contribution<T>(r, i, false));
      }
    }
  }
  world.run([&](Communicator& comm) {
    Array<T> inout(world, contributions<T>(comm.rank(), count, op == ReduceOp::sum && exact));
    comm.all_reduce(inout.all(), op).wait();
    expect_equal(inout.read(), expected, comm);
  });
}

// More than a megabyte of floats together; under the thread sanitizer, which is slow, just enough for all_reduce to
// take the way of long messages.
#ifdef __SANITIZE_THREAD__
constexpr int64_t kLarge = 20'000;
#else
constexpr int64_t kLarge = 320'000;
#endif
int64_t large_portion(const World& world) {
  return kLarge / world.size();
}

TEST_P(Conformance, RankAndSizeAreTheWorlds) {
  world().run([&](Communicator& comm) {
    EXPECT_EQ(comm.size(), world().size());
    EXPECT_GE(comm.rank(), 0);
    EXPECT_LT(comm.rank(), comm.size());
  });
}

TEST_P(Conformance, ReduceScatterAddsInRankOrder) {
  expect_reduce_scatter<float>(world(), Counts(static_cast<size_t>(world().size()), 1000), false);
  expect_reduce_scatter<double>(world(), Counts(static_cast<size_t>(world().size()), 1000), false);
}

TEST_P(Conformance, ReduceScatterOfUnevenAndEmptyPortions) {
  expect_reduce_scatter<float>(world(), uneven_counts(world().size(), 5000), false);
  expect_reduce_scatter<double>(world(), uneven_counts(world().size(), 0), false);
}

TEST_P(Conformance, ReduceScatterInPlace) {
  expect_reduce_scatter<float>(world(), uneven_counts(world().size(), 3000), true);
}

TEST_P(Conformance, ReduceScatterOfLargeBuffers) {
  expect_reduce_scatter<float>(world(), uneven_counts(world().size(), large_portion(world())),
                               false);
}

TEST_P(Conformance, ReduceScatterOfOneLongPortionAmongShortOnes) {
  Counts counts(static_cast<size_t>(world().size()), 1000);
  counts.back() = 300'000;  // 2.4 MB: more than backends move in one piece
  expect_reduce_scatter<double>(world(), counts, false);
  expect_reduce_scatter<double>(world(), counts, true);
}

TEST_P(Conformance, AllGatherOfEveryType) {
  const Counts counts = uneven_counts(world().size(), 100);
  expect_all_gather<uint8_t>(world(), counts, false);
  expect_all_gather<int32_t>(world(), counts, false);
  expect_all_gather<int64_t>(world(), counts, false);
  expect_all_gather<float>(world(), counts, false);
  expect_all_gather<double>(world(), counts, false);
  expect_all_gather<float>(world(), Counts(static_cast<size_t>(world().size()), 17), false);
}

TEST_P(Conformance, AllGatherInPlace) {
  expect_all_gather<float>(world(), uneven_counts(world().size(), 100), true);
  expect_all_gather<float>(world(), Counts(static_cast<size_t>(world().size()), 64), true);
}

TEST_P(Conformance, AllGatherOfLargeBuffers) {
  expect_all_gather<float>(world(), uneven_counts(world().size(), large_portion(world())), false);
  expect_all_gather<double>(world(), uneven_counts(world().size(), large_portion(world())), true);
}

TEST_P(Conformance, AllReduceOfEveryTypeAndOperation) {
  expect_all_reduce<float>(world(), 1001, ReduceOp::sum);
  expect_all_reduce<double>(world(), 1001, ReduceOp::sum);
  expect_all_reduce<int32_t>(world(), 1001, ReduceOp::sum);
  expect_all_reduce<int64_t>(world(), 1001, ReduceOp::sum);
  expect_all_reduce<int32_t>(world(), 1001, ReduceOp::max);
  expect_all_reduce<int64_t>(world(), 1001, ReduceOp::max);
  expect_all_reduce<uint8_t>(world(), 1001, ReduceOp::max);
  if (!world().adds_in_rank_order()) return;  // NCCL has no bitwise or
  expect_all_reduce<uint8_t>(world(), 1001, ReduceOp::bit_or);
  expect_all_reduce<int32_t>(world(), 1001, ReduceOp::bit_or);
  expect_all_reduce<int64_t>(world(), 1001, ReduceOp::bit_or);
}

TEST_P(Conformance, AllReduceOfLargeBuffersAddsInRankOrder) {
  expect_all_reduce<float>(world(), kLarge + 1, ReduceOp::sum);
  expect_all_reduce<double>(world(), kLarge + 1, ReduceOp::sum);
  expect_all_reduce<int64_t>(world(), kLarge + 1, ReduceOp::max);
}

TEST_P(Conformance, ExchangeOfMessagesFromAndIntoScatteredMemory) {
  world().run([&](Communicator& comm) {
    // Rank s sends (s + 2 r) % 5 messages to rank r, each longer than the one before; to some of them none. On both sides they lie
    // in arrays of their own.
    const auto count = [](int from, int to) { return (from + 2 * to) % 5; };
    const auto elements = [](int i) { return int64_t{i} * i * 700; };
    const auto values = [&](int from, int to, int i) {
      return contributions<int32_t>((from * 100 + to) * 10 + i, elements(i), false);
    };
    std::vector<Array<int32_t>> sources, targets;
    std::vector<Message> sends, receives;
    const auto add = [](std::vector<Message>& messages, int peer, const Array<int32_t>& array) {
      const Buffer all = array.all();
      messages.push_back({peer, static_cast<std::byte*>(all.data), all.count * 4});
    };
    for (int r = comm.size() - 1; r >= 0; --r) {
      if (r == comm.rank()) continue;
      for (int i = 0; i < count(comm.rank(), r); ++i) {
        sources.emplace_back(world(), values(comm.rank(), r, i));
        add(sends, r, sources.back());
      }
      for (int i = 0; i < count(r, comm.rank()); ++i) {
        targets.emplace_back(world(), elements(i), 77);
        add(receives, r, targets.back());
      }
    }
    comm.exchange(sends, receives).wait();
    auto target = targets.begin();
    for (int r = comm.size() - 1; r >= 0; --r) {
      if (r == comm.rank()) continue;
      for (int i = 0; i < count(r, comm.rank()); ++i) {
        expect_equal((target++)->read(), values(r, comm.rank(), i), comm);
      }
    }
  });
}

TEST_P(Conformance, BroadcastFromEveryRoot) {
  for (const int64_t count : {int64_t{1}, int64_t{1000}, kLarge}) {
    const auto expected = contributions<double>(0, count, false);
    world().run([&](Communicator& comm) {
      for (int root = 0; root < comm.size(); ++root) {
        Array<double> inout(
            world(), comm.rank() == root ? expected : std::vector<double>(expected.size(), 77.0));
        comm.broadcast(inout.all(), root).wait();
        expect_equal(inout.read(), expected, comm);
      }
    });
  }
}

TEST_P(Conformance, BarrierEndsAfterTheLastRankEntered) {
  world().run([&](Communicator& comm) {
    // The monotonic clock is one for all processes of a host.
    const auto now = [] {
      return int64_t{std::chrono::steady_clock::now().time_since_epoch().count()};
    };
    if (comm.rank() == comm.size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    const int64_t entered = now();
    comm.barrier().wait();
    const int64_t left = now();
    Array<int64_t> mine(world(), 1, entered);
    Array<int64_t> all(world(), comm.size(), 0);
    comm.all_gather(mine.all(), all.all(), Counts(static_cast<size_t>(comm.size()), 1)).wait();
    for (const int64_t each : all.read()) EXPECT_LE(each, left);
  });
}

TEST_P(Conformance, NothingToMove) {
  world().run([&](Communicator& comm) {
    const Counts none(static_cast<size_t>(comm.size()), 0);
    const Buffer empty{nullptr, 0, DataType::f32};
    comm.reduce_scatter(empty, empty, none).wait();
    comm.all_gather(empty, empty, none).wait();
    comm.exchange({}, {}).wait();
    if (comm.size() > 1) {
      const Message nothing{(comm.rank() + 1) % comm.size(), nullptr, 0};
      comm.exchange({nothing}, {}).wait();
    }
    comm.all_reduce(empty, ReduceOp::sum).wait();
    comm.broadcast(empty, 0).wait();
    comm.barrier().wait();
  });
}

TEST_P(Conformance, ManyOperationsUnderWayAreWaitedForInAnyOrder) {
  const bool exact = !world().adds_in_rank_order();
  const auto expected = sums<float>(world().size(), 20'000, exact);
  world().run([&](Communicator& comm) {
    constexpr int kOperations = 24;
    // Lengths around the one at which all_reduce changes its way, so operations of one and of two rounds mix.
    const auto count = [](int k) { return int64_t{k % 3 == 0 ? 20'000 : 100 + k}; };
    std::vector<Array<float>> sums_under_way;
    std::vector<Array<int64_t>> maxima;
    std::vector<Work> works;
    for (int k = 0; k < kOperations; ++k) {
      sums_under_way.emplace_back(world(), contributions<float>(comm.rank(), count(k), exact));
      maxima.emplace_back(world(), 1, int64_t{comm.rank() * 10 + k});
      works.push_back(comm.all_reduce(sums_under_way.back().all(), ReduceOp::sum));
      works.push_back(comm.all_reduce(maxima.back().all(), ReduceOp::max));
    }
    // Every rank in an order of its own.
    std::vector<size_t> order(works.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (comm.rank() % 2 == 0) std::reverse(order.begin(), order.end());
    std::rotate(order.begin(), order.begin() + comm.rank(), order.end());
    for (const size_t index : order) works[index].wait();
    for (int k = 0; k < kOperations; ++k) {
      expect_equal(sums_under_way[k].read(), slice_of(expected, 0, count(k)), comm);
      ASSERT_EQ(maxima[k].read().front(), (comm.size() - 1) * 10 + k);
    }
  });
}

TEST_P(Conformance, IsUsedManyTimes) {
  world().run([&](Communicator& comm) {
    for (int k = 0; k < 200; ++k) {
      Array<int64_t> inout(world(), 1, int64_t{comm.rank() + k});
      comm.all_reduce(inout.all(), ReduceOp::sum).wait();
      ASSERT_EQ(inout.read().front(), comm.size() * (comm.size() - 1) / 2 + comm.size() * k);
    }
  });
}

TEST_P(Conformance, GroupsCountTheirRanksInTheOrderGiven) {
  world().run([&](Communicator& comm) {
    std::vector<int> reversed(static_cast<size_t>(comm.size()));
    std::iota(reversed.rbegin(), reversed.rend(), 0);
    const auto all = comm.group(reversed);
    const auto first = comm.group({0});
    ASSERT_NE(all, nullptr);
    EXPECT_EQ(all->rank(), comm.size() - 1 - comm.rank());
    EXPECT_EQ(all->backend(), comm.backend());
    EXPECT_EQ(first == nullptr, comm.rank() != 0);
    Array<int32_t> inout(world(), 1, comm.rank());
    Array<int32_t> other(world(), 1, comm.rank());
    // Operations of the two may be under way together.
    Work from_group = all->broadcast(inout.all(), 0);
    Work from_world = comm.broadcast(other.all(), 0);
    from_world.wait();
    from_group.wait();
    EXPECT_EQ(inout.read().front(), comm.size() - 1);
    EXPECT_EQ(other.read().front(), 0);
  });
}

TEST_P(Conformance, GroupsOfSomeRanksAndTheirGroups) {
  if (world().size() < 3) GTEST_SKIP() << "needs three ranks";
  world().run([&](Communicator& comm) {
    const auto pair = comm.group({0, comm.size() - 1});
    const auto rest = comm.group({1, 0});
    if (comm.rank() == 0 || comm.rank() == comm.size() - 1) {
      ASSERT_NE(pair, nullptr);
      Array<int32_t> sum(world(), 1, comm.rank() + 1);
      pair->all_reduce(sum.all(), ReduceOp::sum).wait();
      EXPECT_EQ(sum.read().front(), comm.size() + 1);
      const auto swapped = pair->group({1, 0});
      EXPECT_EQ(swapped->rank(), 1 - pair->rank());
      Array<int32_t> from(world(), 1, comm.rank());
      swapped->broadcast(from.all(), 0).wait();
      EXPECT_EQ(from.read().front(), comm.size() - 1);
    } else {
      EXPECT_EQ(pair, nullptr);
    }
    EXPECT_EQ(rest != nullptr, comm.rank() <= 1);
    comm.barrier().wait();
  });
}

TEST_P(Conformance, RefusesWrongArgumentsAndGoesOn) {
  world().run([&](Communicator& comm) {
    Array<float> data(world(), 10, 1.0f);
    const Counts wrong(static_cast<size_t>(comm.size()), 9);
    EXPECT_THROW(comm.all_gather(data.part(0, 1), data.all(), wrong), ConfigError);
    EXPECT_THROW(comm.reduce_scatter(data.all(), data.part(0, 1), wrong), ConfigError);
    EXPECT_THROW(comm.all_reduce(data.all(), ReduceOp::max), ConfigError);
    EXPECT_THROW(comm.broadcast(data.all(), comm.size()), ConfigError);
    std::byte one{};
    EXPECT_THROW(comm.exchange({{comm.rank(), &one, 1}}, {}), ConfigError);
    EXPECT_THROW(comm.exchange({}, {{comm.size(), &one, 1}}), ConfigError);
    EXPECT_THROW(comm.exchange({{(comm.rank() + 1) % comm.size(), nullptr, 1}}, {}), ConfigError);
    EXPECT_THROW(comm.group({0, 0}), ConfigError);
    EXPECT_THROW(comm.group({}), ConfigError);
    comm.all_reduce(data.all(), ReduceOp::sum).wait();
    EXPECT_EQ(data.read().front(), static_cast<float>(comm.size()));
  });
}

}  // namespace
}  // namespace fusedbun::comm::testing

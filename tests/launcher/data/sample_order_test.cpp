#include "fusedbun/launcher/data/sample_order.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace fusedbun::data {
namespace {

std::vector<int64_t> epoch_of(const SampleOrder& order, int64_t epoch) {
  std::vector<int64_t> samples;
  for (int64_t i = 0; i < order.samples(); ++i) {
    const SampleOrder::Place place = order.at(epoch * order.samples() + i);
    EXPECT_EQ(place.epoch, epoch);
    samples.push_back(place.sample);
  }
  return samples;
}

TEST(SampleOrder, EachEpochHasEverySampleOnce) {
  for (const int64_t samples : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    std::vector<int64_t> all(static_cast<size_t>(samples));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int64_t> found = epoch_of(SampleOrder(samples, 5), epoch);
      std::ranges::sort(found);
      EXPECT_EQ(found, all) << samples << " samples, epoch " << epoch;
    }
  }
}

TEST(SampleOrder, EpochsAndSeedsHaveOrdersOfTheirOwn) {
  const SampleOrder order(1000, 1);
  EXPECT_EQ(epoch_of(order, 0), epoch_of(SampleOrder(1000, 1), 0));
  EXPECT_NE(epoch_of(order, 0), epoch_of(order, 1));
  EXPECT_NE(epoch_of(order, 0), epoch_of(SampleOrder(1000, 2), 0));
}

// Where a sample stands says nothing of where it is read: over many orders each pair is as likely as any other. 12 samples, 12,000 orders:
// 1,000 expected in each cell, with a deviation of 30.
TEST(SampleOrder, EverySampleIsAsLikelyAnywhere) {
  constexpr int64_t kSamples = 12;
  std::vector<std::vector<int>> counts(kSamples, std::vector<int>(kSamples));
  for (uint64_t seed = 0; seed < 12'000; ++seed) {
    const std::vector<int64_t> samples = epoch_of(SampleOrder(kSamples, seed), 0);
    for (size_t i = 0; i < samples.size(); ++i) ++counts[i][static_cast<size_t>(samples[i])];
  }
  for (const auto& row : counts)
    for (const int count : row) EXPECT_NEAR(count, 1000, 6 * 30);
}

TEST(SampleOrder, NeighboursAreParted) {
  const std::vector<int64_t> samples = epoch_of(SampleOrder(10'000, 3), 0);
  int neighbours = 0;
  for (size_t i = 1; i < samples.size(); ++i)
    neighbours += std::abs(samples[i] - samples[i - 1]) == 1;
  EXPECT_LT(neighbours, 15) << "two of 10,000 are expected";
}

TEST(SampleOrder, ANumberIsDrawnForEachEpoch) {
  const SampleOrder order(10, 7);
  std::set<int64_t> drawn;
  for (int64_t epoch = 0; epoch < 1000; ++epoch) {
    const int64_t one = order.drawn(epoch, 50);
    EXPECT_EQ(order.drawn(epoch, 50), one);
    EXPECT_GE(one, 0);
    EXPECT_LT(one, 50);
    drawn.insert(one);
  }
  EXPECT_EQ(drawn.size(), 50u);
}

}  // namespace
}  // namespace fusedbun::data

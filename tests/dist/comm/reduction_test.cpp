#include "fusedbun/dist/comm/reduction.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace fusedbun::comm {
namespace {

uint64_t seed() {
  const char* const given = std::getenv("FUSEDBUN_TEST_SEED");
  return given != nullptr ? std::stoull(given) : 20261122;
}

// Bits of random sign, exponent and mantissa, infinities and NaNs among them.
template <class T, class Bits>
std::vector<T> random_floats(std::mt19937_64& random, size_t count) {
  std::vector<T> elements;
  for (size_t i = 0; i < count; ++i)
    elements.push_back(std::bit_cast<T>(static_cast<Bits>(random())));
  return elements;
}

template <class T, class Bits>
void expect_sums_in_rank_order() {
  std::cout << "seed " << seed() << " (FUSEDBUN_TEST_SEED)\n";
  std::mt19937_64 random(seed());
  for (const size_t count : {0u, 1u, 7u, 1023u, 1024u, 2048u, 2049u, 5000u}) {
    for (size_t ranks = 1; ranks <= 5; ++ranks) {
      std::vector<std::vector<T>> parts;
      std::vector<const void*> pointers;
      for (size_t r = 0; r < ranks; ++r) parts.push_back(random_floats<T, Bits>(random, count));
      for (const auto& part : parts) pointers.push_back(part.data());
      std::vector<T> expected(count);
      for (size_t i = 0; i < count; ++i) {
        expected[i] = parts[0][i];
        for (size_t r = 1; r < ranks; ++r) expected[i] = expected[i] + parts[r][i];
      }
      // In place, over the last part: it is read before it is written.
      reduce_in_rank_order(ReduceOp::sum, data_type_of<T>(), pointers, parts.back().data(),
                           static_cast<int64_t>(count));
      for (size_t i = 0; i < count; ++i) {
        if (expected[i] != expected[i]) {
          ASSERT_NE(parts.back()[i], parts.back()[i]) << "a NaN stays one";
        } else {
          ASSERT_EQ(std::bit_cast<Bits>(parts.back()[i]), std::bit_cast<Bits>(expected[i]))
              << i << " of " << count;
        }
      }
    }
  }
}

TEST(Reduction, SumsOfFloatAreTheDumbLoopsBitForBit) {
  expect_sums_in_rank_order<float, uint32_t>();
}
TEST(Reduction, SumsOfDoubleAreTheDumbLoopsBitForBit) {
  expect_sums_in_rank_order<double, uint64_t>();
}

TEST(Reduction, OnePartIsCopiedWithItsSigns) {
  const float part[] = {-0.0f, 1.5f};
  float output[2] = {7, 7};
  const void* const parts[] = {part};
  reduce_in_rank_order(ReduceOp::sum, DataType::f32, parts, output, 2);
  EXPECT_EQ(std::bit_cast<uint32_t>(output[0]), 0x80000000u) << "no zero was added to it";
  EXPECT_EQ(output[1], 1.5f);
}

TEST(Reduction, IntegersWrapAround) {
  const int32_t a[] = {std::numeric_limits<int32_t>::max()};
  const int32_t b[] = {1};
  int32_t output[1];
  const void* const parts[] = {a, b};
  reduce_in_rank_order(ReduceOp::sum, DataType::i32, parts, output, 1);
  EXPECT_EQ(output[0], std::numeric_limits<int32_t>::min());
}

TEST(Reduction, MaximaOfEveryIntegerType) {
  const auto expect_max = [](auto low, auto high, DataType type) {
    decltype(low) output[2];
    const decltype(low) a[] = {low, high};
    const decltype(low) b[] = {high, low};
    const void* const parts[] = {a, b};
    reduce_in_rank_order(ReduceOp::max, type, parts, output, 2);
    EXPECT_EQ(output[0], high);
    EXPECT_EQ(output[1], high);
  };
  expect_max(uint8_t{3}, uint8_t{200}, DataType::u8);
  expect_max(int32_t{-5}, int32_t{4}, DataType::i32);
  expect_max(int64_t{-1} << 60, int64_t{1} << 60, DataType::i64);
}

}  // namespace
}  // namespace fusedbun::comm

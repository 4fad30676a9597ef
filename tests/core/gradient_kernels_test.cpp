// The gradient kernels against loops that do one element after the other, on every instruction set of this machine.
#include "fusedbun/core/gradient_kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "fusedbun/tests/core/random_segment.h"

namespace fusedbun {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<InstructionSet> supported_sets() {
  std::vector<InstructionSet> sets;
  for (auto set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512}) {
    if (is_supported(set)) sets.push_back(set);
  }
  return sets;
}

// --- float16 and bfloat16, worked out from their definitions ------------------------------------

float value_of_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

double value_of_f16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? kNan : sign * kInf;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

// Of the two neighbours the nearer, of two equally near the even one; beyond the largest, inf as IEEE 754 rounds.
uint16_t nearest_bf16(float x) {
  if (std::isnan(x)) return 0x7fc0;
  if (std::isinf(x)) return x < 0 ? 0xff80 : 0x7f80;
  const uint32_t down = std::bit_cast<uint32_t>(x) >> 16;  // towards zero
  const double below = value_of_bf16(static_cast<uint16_t>(down));
  const bool is_last = (down & 0x7fff) == 0x7f7f;  // inf stands for 2^128
  const double above = is_last ? std::copysign(std::ldexp(1.0, 128), below)
                               : value_of_bf16(static_cast<uint16_t>(down + 1));
  const double to_below = std::abs(x - below), to_above = std::abs(above - x);
  const bool takes_below = to_below < to_above || (to_below == to_above && down % 2 == 0);
  return static_cast<uint16_t>(takes_below ? down : down + 1);
}

std::vector<float> random_floats(std::mt19937_64& random, int64_t count) {
  std::vector<float> values(count);
  for (float& x : values) {  // of any magnitude whose square is finite
    x = std::ldexp(std::normal_distribution<float>()(random), static_cast<int>(random() % 80) - 50);
  }
  return values;
}

TEST(GradientKernels, EveryFloat16IsWidenedExactly) {
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  for (const InstructionSet set : supported_sets()) {
    std::vector<float> floats(halves.size());
    EXPECT_FALSE(copy_and_test(ElementType::f16, halves.data(), ElementType::f32, floats.data(),
                               std::ssize(halves), set))
        << "inf is among them";
    for (size_t i = 0; i < halves.size(); ++i) {
      const auto expected = static_cast<float>(value_of_f16(halves[i]));
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(floats[i])) << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(floats[i]), std::bit_cast<uint32_t>(expected)) << i;
      }
    }
  }
}

TEST(GradientKernels, Bfloat16IsTheNearestAndWidenedExactly) {
  std::mt19937_64 random(test_seed());
  std::vector<float> source = random_floats(random, 20'000);
  // Ties to even both ways, the largest that rounds down, overflow to inf, subnormals, signed zeros.
  for (const float edge : {1.00390625f, 1.01171875f, 3.3895314e38f, 3.4e38f, 1e-40f, -0.0f, kInf,
                           -kInf, kNan, -kNan}) {
    source.push_back(edge);
  }
  for (const InstructionSet set : supported_sets()) {
    std::vector<uint16_t> rounded(source.size());
    copy_and_test(ElementType::f32, source.data(), ElementType::bf16, rounded.data(),
                  std::ssize(source), set);
    std::vector<float> widened(source.size());
    copy_and_test(ElementType::bf16, rounded.data(), ElementType::f32, widened.data(),
                  std::ssize(source), set);
    for (size_t i = 0; i < source.size(); ++i) {
      ASSERT_EQ(rounded[i], nearest_bf16(source[i])) << source[i];
      ASSERT_EQ(std::bit_cast<uint32_t>(widened[i]), static_cast<uint32_t>(rounded[i]) << 16);
    }
  }
}

// --- finite? ------------------------------------------------------------------------------------

// Some values whose square is not finite in the arithmetic of `type`, as they are stored.
template <class Stored>
void expect_found(ElementType type, Stored good, const std::vector<Stored>& bad_ones) {
  for (const InstructionSet set : supported_sets()) {
    for (const int64_t count : {1, 15, 4096, 4097, 10000}) {
      for (const int64_t place : {int64_t{0}, count / 2, count - 1}) {
        std::vector<Stored> values(count, good), copy(count);
        EXPECT_TRUE(squares_are_finite(type, values.data(), count, set));
        EXPECT_TRUE(copy_and_test(type, values.data(), type, copy.data(), count, set));
        for (const Stored bad : bad_ones) {
          values[place] = bad;
          EXPECT_FALSE(squares_are_finite(type, values.data(), count, set)) << place;
          EXPECT_FALSE(copy_and_test(type, values.data(), type, copy.data(), count, set)) << place;
          EXPECT_EQ(std::memcmp(copy.data(), values.data(), count * sizeof(Stored)), 0)
              << "it is copied nevertheless";
        }
      }
    }
  }
}

TEST(GradientKernels, FinitenessIsAskedOfTheSquares) {
  expect_found<float>(ElementType::f32, 1e19f, {kNan, -kInf, 2e19f});
  expect_found<double>(ElementType::f64, 1e150, {kNan, -kInf, 2e154});
  expect_found<uint16_t>(ElementType::bf16, 0x3f80, {0x7fc0, 0xff80, 0x5fc0});  // the last: 2.8e19
  expect_found<uint16_t>(ElementType::f16, 0x7bff, {0x7e00, 0xfc00, 0x7c00});
}

TEST(GradientKernels, AConversionTestsToo) {
  for (const InstructionSet set : supported_sets()) {
    std::vector<float> source(100, 1e19f);
    std::vector<uint16_t> rounded(100);
    const auto copy = [&] {
      return copy_and_test(ElementType::f32, source.data(), ElementType::bf16, rounded.data(), 100,
                           set);
    };
    EXPECT_TRUE(copy());
    for (const float bad : {kNan, kInf, 2e19f}) {
      source[99] = bad;
      EXPECT_FALSE(copy()) << bad;
    }
  }
}

// --- the copy past the caches -------------------------------------------------------------------

TEST(GradientKernels, ALongCopyArrivesWholeFromAndToAnyAddress) {
  std::mt19937_64 random(test_seed());
  constexpr int64_t kLimit = 1 << 20;
  for (const InstructionSet set : supported_sets()) {
    for (const ElementType type :
         {ElementType::f32, ElementType::f64, ElementType::bf16, ElementType::f16}) {
      const int64_t size = type == ElementType::f64 ? 8 : type == ElementType::f32 ? 4 : 2;
      for (const int64_t bytes : {kLimit - size, kLimit, kLimit + 64 * 3 + size, 3 * kLimit + 40}) {
        const int64_t count = bytes / size;
        const int64_t source_head = static_cast<int64_t>(random() % 32) * size;
        const int64_t head = static_cast<int64_t>(random() % 64) * size;
        constexpr char kGuard = 0x5a;
        std::vector<char> source(source_head + bytes), copy(head + bytes + 128, kGuard);
        for (char& byte : source) byte = static_cast<char>(random() & 0x3f);  // finite in any type
        SCOPED_TRACE("bytes " + std::to_string(bytes) + " to head " + std::to_string(head));
        char* const to = copy.data() + head;
        ASSERT_TRUE(copy_and_test(type, source.data() + source_head, type, to, count, set));
        ASSERT_EQ(std::memcmp(to, source.data() + source_head, count * size), 0);
        for (int64_t i = 0; i < head; ++i) ASSERT_EQ(copy[i], kGuard) << "written before it";
        for (size_t i = head + count * size; i < copy.size(); ++i) {
          ASSERT_EQ(copy[i], kGuard) << "written after it";
        }
      }
    }
  }
}

TEST(GradientKernels, ALongCopyFindsTheOneBadElement) {
  std::mt19937_64 random(test_seed());
  constexpr int64_t kCount = (1 << 18) + 4321;  // above 1 MiB of float32
  std::vector<float> source(kCount, 1.0f), copy(kCount);
  for (const InstructionSet set : supported_sets()) {
    const auto copied = [&] {
      return copy_and_test(ElementType::f32, source.data(), ElementType::f32, copy.data(), kCount,
                           set);
    };
    for (const int64_t place : {int64_t{0}, kCount - 1, static_cast<int64_t>(random() % kCount)}) {
      EXPECT_TRUE(copied());
      source[place] = kNan;
      EXPECT_FALSE(copied()) << place;
      source[place] = 1.0f;
    }
  }
}

// --- sums ---------------------------------------------------------------------------------------

// Parts of one stored type, and their sum one element after the other.
template <class T, class Stored>
struct Parts {
  std::vector<std::vector<Stored>> parts;
  std::vector<const void*> pointers;
  std::vector<T> sum;

  template <class Draw, class Value>
  Parts(int count, int64_t length, Draw draw, Value value) {
    for (int r = 0; r < count; ++r) {
      std::vector<Stored>& part = parts.emplace_back(length);
      for (Stored& x : part) x = draw();
    }
    for (const auto& part : parts) pointers.push_back(part.data());
    for (int64_t i = 0; i < length; ++i) {
      T total = static_cast<T>(value(parts[0][i]));
      for (int r = 1; r < count; ++r) total = total + static_cast<T>(value(parts[r][i]));
      sum.push_back(total);
    }
  }
};

const ParallelFor kOnThreads = [](int64_t count, const std::function<void(int64_t)>& task) {
  std::vector<std::jthread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back([&, i] { task(i); });
};

template <class T, class Stored, class Draw, class Value>
void expect_summed(ElementType type, Draw draw, Value value) {
  for (const int64_t length : {0, 1, 15, 1023, 1025, 5000, 200'003}) {
    for (const int count : {1, 2, 3, 5}) {
      Parts<T, Stored> parts(count, length, draw, value);
      double squares = 0;
      for (const T x : parts.sum) squares += static_cast<double>(x) * static_cast<double>(x);
      double on_one = -1;
      for (const InstructionSet set : supported_sets()) {
        for (const bool threads : {false, true}) {
          std::vector<T> sum(length), plain(length);
          const double found = sum_in_order_with_squares<T>(
              parts.pointers, type, sum.data(), length,
              {.set = set, .parallel_for = threads ? kOnThreads : ParallelFor{}});
          ASSERT_TRUE(sum == parts.sum) << length << " elements of " << count << " parts";
          ASSERT_NEAR(found, squares, 1e-12 * squares);
          if (on_one < 0) on_one = found;
          ASSERT_EQ(found, on_one) << "the squares depend on the threads or the instruction set";
          sum_in_order<T>(parts.pointers, type, plain.data(), length, set);
          ASSERT_TRUE(plain == parts.sum);
        }
      }
    }
  }
}

TEST(GradientKernels, SumsAreTheDumbLoopsBitForBit) {
  std::mt19937_64 random(test_seed());
  const auto same = [](auto x) { return x; };
  const auto normal = [&] { return std::normal_distribution<double>()(random); };
  expect_summed<float, float>(
      ElementType::f32, [&] { return static_cast<float>(normal()); }, same);
  expect_summed<double, double>(ElementType::f64, normal, same);
  const auto finite_bits = [&](uint16_t exponent_mask) {
    uint16_t bits;
    do bits = static_cast<uint16_t>(random());
    while ((bits & exponent_mask) == exponent_mask);
    return bits;
  };
  // bfloat16 between 2^-30 and 2^30, so that squares of sums can be compared.
  const auto bf16 = [&] {
    return nearest_bf16(
        static_cast<float>(std::ldexp(normal(), static_cast<int>(random() % 60) - 30)));
  };
  expect_summed<float, uint16_t>(ElementType::bf16, bf16, value_of_bf16);
  expect_summed<float, uint16_t>(
      ElementType::f16, [&] { return finite_bits(0x7c00); }, value_of_f16);
}

TEST(GradientKernels, ASumMayLieInOneOfItsParts) {
  std::mt19937_64 random(test_seed());
  for (const InstructionSet set : supported_sets()) {
    for (size_t place = 0; place < 3; ++place) {
      const auto draw = [&] { return std::normal_distribution<float>()(random); };
      Parts<float, float> parts(3, 5000, draw, [](float x) { return x; });
      sum_in_order<float>(parts.pointers, ElementType::f32, parts.parts[place].data(), 5000, set);
      EXPECT_TRUE(parts.parts[place] == parts.sum) << place;
    }
  }
}

TEST(GradientKernels, SquaresAreAddedInFloat64) {
  // In float32 the small ones would vanish beside the first.
  std::vector<float> values(10'001, 1e-3f);
  values[0] = 1e3f;
  double expected = 0;
  for (const float x : values) expected += static_cast<double>(x) * static_cast<double>(x);
  EXPECT_NEAR(sum_of_squares(values.data(), std::ssize(values), /*columns=*/1500), expected,
              1e-12 * expected);
}

// --- updates that travel rounded ----------------------------------------------------------------

TEST(GradientKernels, ARoundedUpdateIsTheSameForItsOwnerAndForTheOthers) {
  std::mt19937_64 random(test_seed());
  std::vector<float> old_rows = random_floats(random, 150'011);  // several pieces
  std::vector<float> stepped = old_rows;
  for (float& x : stepped) x += 1e-3f * random_floats(random, 1)[0];
  for (const auto& [from, to] : {std::pair(1.0f, kNan),
                                 {1.0f, kInf},
                                 {kInf, 1.0f},
                                 {0.0f, 1e-42f},
                                 {3e38f, -3e38f},
                                 {-0.0f, 0.0f},
                                 {1.0f, 1.0f}}) {
    old_rows.push_back(from);
    stepped.push_back(to);
  }
  const auto count = std::ssize(old_rows);
  for (const InstructionSet set : supported_sets()) {
    std::vector<float> own = old_rows, other = old_rows;
    std::vector<uint16_t> update(old_rows.size());
    round_update(stepped.data(), own.data(), update.data(), count,
                 {.set = set, .parallel_for = kOnThreads});
    apply_update(update.data(), other.data(), count, {.set = set});
    EXPECT_EQ(std::memcmp(own.data(), other.data(), own.size() * sizeof(float)), 0);
    for (size_t i = 0; i < own.size(); ++i) {
      const float change = stepped[i] - old_rows[i];
      ASSERT_EQ(update[i], nearest_bf16(change)) << old_rows[i] << " to " << stepped[i];
      const float expected = old_rows[i] + value_of_bf16(update[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(own[i]));
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(own[i]), std::bit_cast<uint32_t>(expected));
      }
    }
  }
}

}  // namespace
}  // namespace fusedbun

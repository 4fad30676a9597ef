// The copy of a gradient: what arrives, and what is said of it.
#include "fusedbun/dist/step/gradient_copy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

namespace fusedbun {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(GradientCopy, TellsWhetherEverySquareIsFinite) {
  for (const int64_t count : {1, 15, 16, 1000}) {
    for (const int64_t place : {int64_t{0}, count / 2, count - 1}) {
      std::vector<float> source(count, 2.0f), copy(count);
      std::vector<uint16_t> half(count);
      EXPECT_TRUE(copy_and_test(source.data(), copy.data(), count));
      EXPECT_TRUE(copy_and_test(source.data(), half.data(), count));
      EXPECT_EQ(copy, source);
      for (const float bad : {kNan, -kInf, 2e19f}) {  // the last is a number, its square is not
        source[place] = bad;
        EXPECT_FALSE(copy_and_test(source.data(), copy.data(), count)) << bad;
        EXPECT_FALSE(copy_and_test(source.data(), half.data(), count)) << bad;
      }
    }
  }
}

TEST(GradientCopy, RoundsToBfloat16AsLibTorchDoes) {
  at::manual_seed(3);
  at::Tensor source = at::randn({4096}) * at::randn({4096}).exp();
  // Ties to even both ways, the largest that rounds down, overflow to inf, subnormals, signed zeros.
  const std::vector<float> edges = {1.00390625f, 1.01171875f, 3.3895314e38f, 3.4e38f, 1e-40f,
                                    -0.0f,       kInf,        -kInf,         kNan};
  source.narrow(0, 0, static_cast<int64_t>(edges.size())).copy_(at::tensor(edges));
  at::Tensor rounded = at::zeros({4096}, at::kBFloat16);
  copy_and_test(source.data_ptr<float>(), static_cast<uint16_t*>(rounded.data_ptr()), 4096);
  EXPECT_TRUE(at::allclose(rounded.to(at::kFloat), source.to(at::kBFloat16).to(at::kFloat),
                           /*rtol=*/0, /*atol=*/0, /*equal_nan=*/true));
}

}  // namespace
}  // namespace fusedbun

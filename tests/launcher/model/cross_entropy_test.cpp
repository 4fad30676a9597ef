#include "fusedbun/launcher/model/cross_entropy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "fusedbun/launcher/model/autocast.h"

namespace fusedbun::model {
namespace {

using at::Tensor;

constexpr int64_t kTokens = 37, kWidth = 16, kVocab = 50;

struct Case {
  Tensor hidden, weight, targets;
};

Case drawn(at::ScalarType type) {
  at::manual_seed(3);
  Case drawn{at::randn({kTokens, kWidth}).to(type), at::randn({kVocab, kWidth}).to(type),
             at::randint(0, kVocab, {kTokens}, at::kLong)};
  drawn.targets.slice(0, 5, 9).fill_(-100);
  drawn.targets[36].fill_(-1);
  return drawn;
}

struct Result {
  Tensor loss, d_hidden, d_weight;
};

/// The gradients of `factor` times the loss.
Result evaluated(
    const Case& drawn, double factor,
    const std::function<Tensor(const Tensor&, const Tensor&, const Tensor&)>& loss_of) {
  const Tensor hidden = drawn.hidden.clone().requires_grad_();
  const Tensor weight = drawn.weight.clone().requires_grad_();
  const Tensor loss = loss_of(hidden, weight, drawn.targets);
  (loss * factor).backward();
  return {loss.detach(), hidden.grad(), weight.grad()};
}

// Plain operations on all logits, in float64.
Tensor plain(const Tensor& hidden, const Tensor& weight, const Tensor& targets) {
  const Tensor logits = at::linear(hidden.to(at::kDouble), weight.to(at::kDouble));
  return at::cross_entropy_loss(logits, targets.clamp_min(-1), {}, at::Reduction::Mean, -1);
}

void expect_close(const Result& have, const Result& want, double tolerance) {
  const auto distance = [](const Tensor& a, const Tensor& b) {
    return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() /
           b.abs().max().item<double>();
  };
  EXPECT_LT(distance(have.loss, want.loss), tolerance);
  EXPECT_LT(distance(have.d_hidden, want.d_hidden), tolerance);
  EXPECT_LT(distance(have.d_weight, want.d_weight), tolerance);
}

TEST(CrossEntropy, IsThatOfAllLogitsHoweverManyAreThereAtOnce) {
  const Case given = drawn(at::kFloat);
  const Result want = evaluated(given, 3, plain);
  for (const int64_t tokens : {1, 5, 36, 37, 1000}) {
    const Result have = evaluated(given, 3, [&](const auto& h, const auto& w, const auto& t) {
      return linear_cross_entropy(h, w, t, tokens * kVocab * 4);
    });
    expect_close(have, want, 1e-6);
    EXPECT_EQ(have.loss.scalar_type(), at::kFloat);
  }
}

TEST(CrossEntropy, InShortTypesItIsCloseAndHasTheirGradients) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const Case given = drawn(type);
    const Result have = evaluated(given, 1, [](const auto& h, const auto& w, const auto& t) {
      return linear_cross_entropy(h, w, t, 8 * kVocab * 4);
    });
    expect_close(have, evaluated(given, 1, plain), type == at::kHalf ? 4e-3 : 3e-2);
    EXPECT_EQ(have.d_weight.scalar_type(), type);
    EXPECT_EQ(have.loss.scalar_type(), at::kFloat);
  }
}

TEST(CrossEntropy, UnderAutocastGradientsAreInTheParametersType) {
  const Case given = drawn(at::kFloat);
  const Result have = evaluated(given, 1, [](const auto& h, const auto& w, const auto& t) {
    const Autocast scope(at::kCPU, at::kBFloat16);
    return linear_cross_entropy(h, w, t, 8 * kVocab * 4);
  });
  expect_close(have, evaluated(given, 1, plain), 3e-2);
  EXPECT_EQ(have.d_weight.scalar_type(), at::kFloat);
  EXPECT_EQ(have.d_hidden.scalar_type(), at::kFloat);
}

// With a loss scale, gradients of the mean that float16 could not hold are not lost.
TEST(CrossEntropy, AScaledLossKeepsSmallGradients) {
  Case given = drawn(at::kHalf);
  const Result want = evaluated(given, 4096, plain);
  const Result have = evaluated(given, 4096, [](const auto& h, const auto& w, const auto& t) {
    return linear_cross_entropy(h, w, t);
  });
  expect_close(have, want, 4e-3);
}

TEST(CrossEntropy, WithoutGradientsItIsTheSameNumber) {
  const Case given = drawn(at::kFloat);
  const Result want = evaluated(given, 1, [](const auto& h, const auto& w, const auto& t) {
    return linear_cross_entropy(h, w, t, 7 * kVocab * 4);
  });
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(
      linear_cross_entropy(given.hidden, given.weight, given.targets, 7 * kVocab * 4), want.loss));
}

TEST(CrossEntropy, AFrozenOutputLayerHasNoGradient) {
  const Case given = drawn(at::kFloat);
  const Tensor hidden = given.hidden.clone().requires_grad_();
  linear_cross_entropy(hidden, given.weight, given.targets).backward();
  EXPECT_TRUE(hidden.grad().defined());
  EXPECT_FALSE(given.weight.grad().defined());
}

TEST(CrossEntropy, ADivisorTakesThePlaceOfTheNumberOfTargets) {
  const Case given = drawn(at::kFloat);
  const double count = static_cast<double>(given.targets.ge(0).sum().item<int64_t>());
  const Result want = evaluated(given, count / 50, plain);
  const Result have = evaluated(given, 1, [](const Tensor& h, const Tensor& w, const Tensor& t) {
    return linear_cross_entropy(h, w, t, 7 * kVocab * 4, 50);
  });
  expect_close(have, {want.loss * (count / 50), want.d_hidden, want.d_weight}, 1e-6);
  const torch::NoGradGuard no_grad;
  EXPECT_NEAR(
      linear_cross_entropy(given.hidden, given.weight, given.targets, 1 << 20, 50).item<double>(),
      have.loss.item<double>(), 1e-5);
}

// A rank whose sequences predict nothing has gradients, which are 0.
TEST(CrossEntropy, WithADivisorNoTargetIsNoLoss) {
  const Case given = drawn(at::kFloat);
  const Tensor none = at::full({kTokens}, -100, at::kLong);
  const Tensor hidden = given.hidden.clone().requires_grad_();
  const Tensor loss = linear_cross_entropy(hidden, given.weight, none, 1 << 20, 50);
  loss.backward();
  EXPECT_EQ(loss.item<double>(), 0);
  EXPECT_EQ(hidden.grad().abs().max().item<double>(), 0);
}

TEST(CrossEntropy, OfNoTargetIsNoNumber) {
  const Case given = drawn(at::kFloat);
  const Tensor none = at::full({kTokens}, -100, at::kLong);
  EXPECT_TRUE(at::isnan(linear_cross_entropy(given.hidden, given.weight, none)).item<bool>());
}

}  // namespace
}  // namespace fusedbun::model

#include "fusedbun/launcher/model/autocast.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::model {
namespace {

TEST(AutocastTest, ProductsTakeTheShorterTypeInsideAndTheirOwnOutside) {
  const at::Tensor a = at::ones({2, 2});
  {
    const Autocast scope(at::kCPU, at::kBFloat16);
    EXPECT_EQ(at::matmul(a, a).scalar_type(), at::kBFloat16);
    {
      const Autocast inner(at::kCPU, at::kHalf);
      EXPECT_EQ(at::matmul(a, a).scalar_type(), at::kHalf);
      const Autocast off(at::kCPU, AutocastState{.enabled = false});
      EXPECT_EQ(at::matmul(a, a).scalar_type(), at::kFloat);
    }
    EXPECT_EQ(at::matmul(a, a).scalar_type(), at::kBFloat16);
    EXPECT_EQ((a + a).scalar_type(), at::kFloat);
  }
  EXPECT_EQ(at::matmul(a, a).scalar_type(), at::kFloat);
}

// A cast that outlived the scope would be that of a parameter before its step.
TEST(AutocastTest, AParameterIsCastAnewInEachScope) {
  const at::Tensor weight = at::ones({1, 1}).requires_grad_();
  for (const double value : {1.0, 2.0}) {
    {
      const torch::NoGradGuard no_grad;
      weight.fill_(value);
    }
    const Autocast scope(at::kCPU, at::kBFloat16);
    EXPECT_EQ(at::matmul(at::ones({1, 1}), weight).item<double>(), value);
  }
}

TEST(AutocastTest, AModelComputesItsLossInFloat32) {
  const torch::Tensor tokens = at::arange(48, at::kLong).view({2, 24});
  Gpt2 model(Gpt2Config{.n_layer = 1, .n_head = 2, .n_embd = 32, .n_ctx = 24, .vocab = 256}, 1);
  const double expected = model->loss(tokens, tokens).item<double>();
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    model->set_forward({.autocast = type});
    EXPECT_EQ(model->forward(tokens).scalar_type(), type);
    const torch::Tensor loss = model->loss(tokens, tokens);
    EXPECT_EQ(loss.scalar_type(), at::kFloat);
    EXPECT_NEAR(loss.item<double>(), expected, 0.02);
    EXPECT_FALSE(AutocastState::of_this_thread(at::kCPU).enabled) << "left as it was";
  }
  model->set_forward({});
  model->to(at::kBFloat16);
  EXPECT_EQ(model->forward(tokens).scalar_type(), at::kBFloat16);
  EXPECT_EQ(model->loss(tokens, tokens).scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace fusedbun::model

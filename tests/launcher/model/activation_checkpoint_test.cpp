#include "fusedbun/launcher/model/activation_checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/utils.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/launcher/model/autocast.h"
#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::model {
namespace {

constexpr Gpt2Config kModel{.n_layer = 3, .n_head = 2, .n_embd = 32, .n_ctx = 24, .vocab = 256};

struct Setting {
  std::optional<at::ScalarType> autocast;
  at::ScalarType parameters = at::kFloat;
};

torch::Tensor some_tokens(int64_t sequences, int64_t time) {
  return at::arange(sequences * time, at::kLong).mul(7).remainder(256).view({sequences, time});
}

/// Gradients of some passes that add up, by name.
std::map<std::string, torch::Tensor> gradients(const Setting& setting, bool checkpointed_blocks,
                                               int passes) {
  Gpt2 model(kModel, 3);
  model->to(setting.parameters);
  model->set_forward(
      {.autocast = setting.autocast, .checkpoints_activations = checkpointed_blocks});
  for (int pass = 0; pass < passes; ++pass) {
    const torch::Tensor tokens = some_tokens(2 + pass, 24);
    model->loss(tokens, tokens.roll(1, 1)).backward();
  }
  std::map<std::string, torch::Tensor> found;
  for (const auto& parameter : model->named_parameters())
    found[parameter.key()] = parameter.value().grad();
  return found;
}

TEST(ActivationCheckpointTest, NoBitOfAGradientDiffers) {
  at::set_num_threads(1);
  for (const Setting& setting :
       {Setting{}, Setting{.autocast = at::kBFloat16}, Setting{.autocast = at::kHalf},
        Setting{.autocast = {}, .parameters = at::kBFloat16}}) {
    for (const int passes : {1, 3}) {
      const auto expected = gradients(setting, false, passes);
      const auto found = gradients(setting, true, passes);
      ASSERT_EQ(found.size(), expected.size());
      for (const auto& [name, gradient] : expected) {
        ASSERT_TRUE(found.at(name).defined()) << name;
        EXPECT_EQ(found.at(name).scalar_type(), gradient.scalar_type());
        EXPECT_TRUE(at::equal(found.at(name), gradient)) << name << " after " << passes;
        EXPECT_GT(gradient.abs().sum().item<double>(), 0) << name;
      }
    }
  }
}

TEST(ActivationCheckpointTest, HooksRunInsideOfBackwardOnceForEachParameter) {
  Gpt2 model(kModel, 3);
  model->set_forward({.checkpoints_activations = true});
  std::map<std::string, int> calls;
  bool in_backward = false;
  for (const auto& parameter : model->named_parameters()) {
    parameter.value().register_hook([&, name = parameter.key()](const at::Tensor&) {
      EXPECT_TRUE(in_backward);
      EXPECT_FALSE(at::GradMode::is_enabled());
      ++calls[name];
    });
  }
  const torch::Tensor tokens = some_tokens(2, 24);
  const torch::Tensor loss = model->loss(tokens, tokens);
  EXPECT_TRUE(calls.empty());
  in_backward = true;
  loss.backward();
  EXPECT_EQ(calls.size(), model->parameters().size());
  for (const auto& [name, count] : calls) EXPECT_EQ(count, 1) << name;
}

TEST(ActivationCheckpointTest, ABlockIsComputedOnceMoreUnderTheSameAutocast) {
  const at::Tensor weight = at::ones({4, 4}).requires_grad_();
  std::vector<bool> enabled;
  std::vector<bool> with_gradients;
  const CheckpointedBlock block = [&](const at::Tensor& x) {
    enabled.push_back(AutocastState::of_this_thread(at::kCPU).enabled);
    with_gradients.push_back(at::GradMode::is_enabled());
    const at::Tensor y = at::matmul(x, weight);
    EXPECT_EQ(y.scalar_type(), enabled.back() ? at::kBFloat16 : at::kFloat);
    return y;
  };
  for (const bool autocast : {true, false}) {
    enabled.clear(), with_gradients.clear();
    at::Tensor y;
    {
      std::optional<Autocast> scope;
      if (autocast) scope.emplace(at::kCPU, at::kBFloat16);
      y = checkpointed(block, at::ones({2, 4}));
    }
    // The caller's own autocast in backward is not the forward pass's, and it is left as it was.
    const Autocast around(at::kCPU, {.enabled = !autocast, .type = at::kHalf});
    y.to(at::kFloat).sum().backward();
    EXPECT_EQ(enabled, (std::vector<bool>{autocast, autocast}));
    EXPECT_EQ(with_gradients, (std::vector<bool>{false, true}));
    EXPECT_EQ(AutocastState::of_this_thread(at::kCPU).enabled, !autocast);
    EXPECT_EQ(AutocastState::of_this_thread(at::kCPU).type, at::kHalf);
  }
  // An input that needs no gradient does not keep the parameters from theirs: twice two rows of ones.
  EXPECT_TRUE(at::equal(weight.grad(), at::full({4, 4}, 4.0)));
}

// Casts that a block makes without gradients must not be found by the same autocast's other operations.
TEST(ActivationCheckpointTest, AParameterThatIsAlsoUsedOutsideKeepsItsGradient) {
  const at::Tensor weight = at::ones({4, 4}).requires_grad_();
  const CheckpointedBlock block = [&](const at::Tensor& x) { return at::matmul(x, weight); };
  at::Tensor y;
  {
    const Autocast scope(at::kCPU, at::kBFloat16);
    y = at::matmul(checkpointed(block, at::ones({1, 4})), weight);
  }
  y.to(at::kFloat).sum().backward();
  EXPECT_TRUE(at::equal(weight.grad(), at::full({4, 4}, 8.0)));  // 4 as the first, 4 as the second
}

TEST(ActivationCheckpointTest, WithoutGradientModeItIsTheBlockAlone) {
  const torch::NoGradGuard no_grad;
  int calls = 0;
  const at::Tensor x = at::ones({2}).requires_grad_();
  const at::Tensor y = checkpointed(
      [&](const at::Tensor& input) {
        ++calls;
        return input * 2;
      },
      x);
  EXPECT_FALSE(y.requires_grad());
  EXPECT_EQ(calls, 1);
}

TEST(ActivationCheckpointTest, WhatABlockThrowsInBackwardComesOutOfBackward) {
  int calls = 0;
  const at::Tensor x = at::ones({2}).requires_grad_();
  const at::Tensor y = checkpointed(
      [&](const at::Tensor& input) {
        if (++calls == 2) throw std::runtime_error("not again");
        return input * 2;
      },
      x);
  EXPECT_THROW(y.sum().backward(), std::runtime_error);
  EXPECT_TRUE(at::GradMode::is_enabled());
}

}  // namespace
}  // namespace fusedbun::model

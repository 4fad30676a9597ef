// Where dropout acts, how often, and that its masks are a function of the seed alone.
#include "fusedbun/launcher/model/dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <functional>
#include <memory>

#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/llama.h"

namespace fusedbun::model {
namespace {

using at::Tensor;

double share(const Tensor& condition) {
  return condition.to(at::kDouble).mean().item<double>();
}

TEST(DropoutTest, LeavesOutAShareAndKeepsTheMean) {
  const Tensor x = at::full({1000, 1000}, 3.0);
  const Tensor y = (PassDropout({.embeddings = 0.1}, 5).begin(0, at::kCPU), dropped(x, 0.1));
  EXPECT_NEAR(share(y == 0), 0.1, 0.002);  // the standard deviation is 0.0003
  EXPECT_NEAR(y.mean().item<double>(), 3, 0.006);
  EXPECT_TRUE(at::allclose(y.max(), at::full({}, 3 / 0.9)));
  EXPECT_TRUE(dropped(x, 0).is_same(x));
}

/// Models whose last hidden states tests look at.
struct OpenGpt2 : Gpt2Impl {
  using Gpt2Impl::Gpt2Impl;
  Tensor hidden_states(const Tensor& tokens, const Tensor& positions, uint64_t seed) {
    return hidden(tokens, positions, nullptr, PassDropout(dropout(), seed));
  }
};
struct OpenLlama : LlamaImpl {
  using LlamaImpl::LlamaImpl;
  Tensor hidden_states(const Tensor& tokens, const Tensor& positions, uint64_t seed) {
    return hidden(tokens, positions, nullptr, PassDropout(dropout(), seed));
  }
};

// So wide that a row without a value that both of two masks leave out is one in four thousand.
constexpr int64_t kWidth = 128;

/// A GPT-2 all of whose weights are 0, except for norms, and those that `set` sets by name.
std::shared_ptr<OpenGpt2> blank_gpt2(
    const DropoutRates& rates,
    const std::function<void(torch::OrderedDict<std::string, Tensor>&)>& set) {
  const torch::NoGradGuard no_grad;
  const auto model = std::make_shared<OpenGpt2>(
      Gpt2Config{
          .n_layer = 2, .n_head = 2, .n_embd = kWidth, .n_ctx = 4, .vocab = 8, .dropout = rates},
      1);
  auto parameters = model->named_parameters();
  for (auto& parameter : parameters)
    if (parameter.key().find("ln_") == std::string::npos) parameter.value().zero_();
  set(parameters);
  return model;
}

const Tensor kTokens = at::zeros({2000, 4}, at::kLong);

// The norm at the end shows which values of a row are equal, and their order. A row of ones of which some were left out has two levels: the
// lower are those left out.
double share_of_lowest(const Tensor& hidden) {
  return share(hidden <= std::get<0>(hidden.min(-1, /*keepdim=*/true)) + 1e-4);
}

TEST(DropoutTest, OfGpt2sEmbeddings) {
  const torch::NoGradGuard no_grad;
  const auto ones = [](auto& parameters) { parameters["wte.weight"].fill_(1); };
  const auto model = blank_gpt2({.embeddings = 0.2}, ones);
  EXPECT_NEAR(share_of_lowest(model->hidden_states(kTokens, {}, 7)), 0.2, 0.01);
  // Nothing else can act on a model that adds nothing to the stream.
  const auto others = blank_gpt2({.attention = 0.2, .residuals = 0.2}, ones);
  EXPECT_EQ(share_of_lowest(others->hidden_states(kTokens, {}, 7)), 1);
}

TEST(DropoutTest, OfBothBranchesOfGpt2sBlocksEachWithAMaskOfItsOwn) {
  const torch::NoGradGuard no_grad;
  for (const auto& [one, other] : {std::pair("h.0.attn.c_proj.bias", "h.0.mlp.c_proj.bias"),
                                   std::pair("h.0.attn.c_proj.bias", "h.1.attn.c_proj.bias"),
                                   std::pair("h.0.mlp.c_proj.bias", "h.1.mlp.c_proj.bias")}) {
    const auto alone =
        blank_gpt2({.residuals = 0.25}, [&](auto& parameters) { parameters[one].fill_(1); });
    EXPECT_NEAR(share_of_lowest(alone->hidden_states(kTokens, {}, 7)), 0.25, 0.01) << one;
    const auto both = blank_gpt2({.residuals = 0.25}, [&](auto& parameters) {
      parameters[one].fill_(1), parameters[other].fill_(1);
    });
    // Left out of both; one mask for both would be a quarter.
    EXPECT_NEAR(share_of_lowest(both->hidden_states(kTokens, {}, 7)), 0.0625, 0.005) << other;
    const auto others = blank_gpt2({.embeddings = 0.25, .attention = 0.25},
                                   [&](auto& parameters) { parameters[one].fill_(1); });
    EXPECT_EQ(share_of_lowest(others->hidden_states(kTokens, {}, 7)), 1) << one;
  }
}

/// Shares of the rows [batch, time, width] that are 0, by position.
std::vector<double> blank_rows(const Tensor& hidden) {
  std::vector<double> shares;
  for (int64_t i = 0; i < hidden.size(1); ++i)
    shares.push_back(share((hidden.select(1, i) == 0).all(-1)));
  return shares;
}

// Values are 1 in one place, and what attention makes of them is added as it is: 0 where all weights of a position were left out.
TEST(DropoutTest, OfAttentionsWeights) {
  const torch::NoGradGuard no_grad;
  constexpr double kRate = 0.5;
  const auto model = blank_gpt2({.attention = kRate}, [](auto& parameters) {
    parameters["h.0.attn.c_attn.bias"][2 * kWidth] = 1;
    parameters["h.0.attn.c_proj.weight"].copy_(at::eye(kWidth));
  });
  const Tensor positions = at::tensor({0, 1, 0, 1}, at::kLong).expand({2000, 4});
  const auto expect_near = [](const std::vector<double>& found,
                              const std::vector<double>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], expected[i], 0.04) << "position " << i;
  };
  expect_near(blank_rows(model->hidden_states(kTokens, {}, 7)), {0.5, 0.25, 0.125, 0.0625});
  expect_near(blank_rows(model->hidden_states(kTokens, positions, 7)), {0.5, 0.25, 0.5, 0.25});

  LlamaConfig config{.layers = 1,
                     .width = 32,
                     .mlp_width = 48,
                     .heads = 4,
                     .kv_heads = 2,
                     .head_width = 8,
                     .context = 4,
                     .vocab = 8,
                     .qkv_bias = true,
                     .attention_dropout = kRate};
  for (const int64_t window : {0, 2}) {
    config.window = window;
    if (window > 0) config.is_windowed = {true};
    OpenLlama llama(config, 1);
    auto parameters = llama.named_parameters();
    for (auto& parameter : parameters)
      if (parameter.value().dim() == 2 || parameter.key().ends_with("bias"))
        parameter.value().zero_();
    parameters["model.layers.0.self_attn.v_proj.bias"][0] = 1;
    parameters["model.layers.0.self_attn.o_proj.weight"][0][0] = 1;  // the first head's
    const double last = window == 0 ? 0.0625 : 0.25;
    const double third = window == 0 ? 0.125 : 0.25;
    expect_near(blank_rows(llama.hidden_states(kTokens, {}, 7)), {0.5, 0.25, third, last});
    expect_near(blank_rows(llama.hidden_states(kTokens, positions, 7)), {0.5, 0.25, 0.5, 0.25});
  }
}

// Models that have all that draws, or stands beside what does.
std::vector<std::shared_ptr<CausalLm>> models() {
  LlamaConfig windowed{.layers = 3,
                       .width = 32,
                       .mlp_width = 48,
                       .heads = 4,
                       .kv_heads = 2,
                       .head_width = 8,
                       .context = 24,
                       .vocab = 256,
                       .attention_dropout = 0.3};
  windowed.window = 5;
  windowed.is_windowed = {true, false, true};
  return {std::make_shared<Gpt2Impl>(
              Gpt2Config{.n_layer = 3,
                         .n_head = 2,
                         .n_embd = 32,
                         .n_ctx = 24,
                         .initial_deviation = 0.2,
                         .dropout = {.embeddings = 0.1, .attention = 0.2, .residuals = 0.3}},
              3),
          std::make_shared<LlamaImpl>(windowed, 3)};
}

Tensor some_tokens() {
  return at::arange(2 * 24, at::kLong).mul(7).remainder(256).view({2, 24});
}
const std::vector<Tensor> kPositions = {
    {}, at::cat({at::arange(10, at::kLong), at::arange(14, at::kLong)}).expand({2, 24})};

// Two passes whose blocks are computed once more only after both were computed once.
std::vector<Tensor> gradients(CausalLm& model, const Tensor& positions, bool checkpointed_blocks) {
  model.set_forward({.checkpoints_activations = checkpointed_blocks});
  model.zero_grad();
  const Tensor tokens = some_tokens();
  const Tensor first = model.loss(tokens, tokens.roll(1, 1), positions, {}, 11);
  const Tensor second = model.loss(tokens, tokens.roll(1, 1), positions, {}, 12);
  at::rand({5});  // of other users
  first.backward();
  second.backward();
  std::vector<Tensor> found;
  for (const Tensor& parameter : model.parameters()) found.push_back(parameter.grad().clone());
  return found;
}

TEST(DropoutTest, BlocksThatAreComputedOnceMoreDrawTheSame) {
  at::set_num_threads(1);
  for (const auto& model : models()) {
    for (const Tensor& positions : kPositions) {
      const std::vector<Tensor> expected = gradients(*model, positions, false);
      const std::vector<Tensor> found = gradients(*model, positions, true);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i]));
    }
  }
}

TEST(DropoutTest, TheSeedSaysAllOfIt) {
  const torch::NoGradGuard no_grad;
  const Tensor tokens = some_tokens();
  for (const auto& model : models()) {
    const auto loss = [&](std::optional<uint64_t> seed) {
      return model->loss(tokens, tokens.roll(1, 1), {}, {}, seed).item<double>();
    };
    const double without = loss({}), once = loss(11);
    at::manual_seed(99);
    EXPECT_EQ(loss(11), once);
    EXPECT_NE(loss(12), once);
    EXPECT_NE(once, without);
    EXPECT_EQ(loss({}), without);
  }
}

TEST(DropoutTest, WithoutASeedNothingIsDrawn) {
  const Tensor tokens = some_tokens();
  const auto next = [&](const std::function<void()>& before) {
    at::manual_seed(5);
    before();
    return at::rand({4});
  };
  const Tensor expected = next([] {});
  for (const auto& model : models()) {
    EXPECT_TRUE(at::equal(next([&] { model->loss(tokens, tokens).backward(); }), expected));
    EXPECT_TRUE(at::equal(next([&] { model->forward(tokens); }), expected));
    const Tensor whole = model->forward(tokens).select(1, 23);
    KeyValueCache cache;
    Tensor last;
    EXPECT_TRUE(at::equal(next([&] { last = model->next_logits(tokens, cache); }), expected));
    EXPECT_TRUE(at::allclose(last, whole, 1e-4, 1e-5));
  }
  // A model without dropout does not touch the generator either.
  const auto plain = std::make_shared<Gpt2Impl>(Gpt2Config{.n_ctx = 24}, 3);
  EXPECT_TRUE(at::equal(next([&] { plain->loss(tokens, tokens, {}, {}, 11); }), expected));
}

}  // namespace
}  // namespace fusedbun::model

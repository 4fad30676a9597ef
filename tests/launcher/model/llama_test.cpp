#include "fusedbun/launcher/model/llama.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "fusedbun/core/error.h"

namespace fusedbun::model {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const LlamaConfig kSmall{.layers = 2,
                         .width = 32,
                         .mlp_width = 48,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_width = 8,
                         .context = 24,
                         .vocab = 256};

torch::Tensor some_tokens(int64_t sequences, int64_t time) {
  return at::arange(sequences * time, at::kLong).mul(7).remainder(256).view({sequences, time});
}

TEST(LlamaTest, HasTheNamesAndShapesOfHuggingFace) {
  const auto parameters = Llama(kSmall, 1)->named_parameters();
  EXPECT_EQ(parameters.size(), 3u + 2 * 9);
  EXPECT_EQ(parameters["model.embed_tokens.weight"].sizes(), (std::vector<int64_t>{256, 32}));
  EXPECT_EQ(parameters["model.layers.1.self_attn.k_proj.weight"].sizes(),
            (std::vector<int64_t>{16, 32}));
  EXPECT_EQ(parameters["model.layers.1.mlp.down_proj.weight"].sizes(),
            (std::vector<int64_t>{32, 48}));
  EXPECT_EQ(parameters["lm_head.weight"].sizes(), (std::vector<int64_t>{256, 32}));
  LlamaConfig tied = kSmall;
  tied.tied = true;
  EXPECT_FALSE(Llama(tied, 1)->named_parameters().contains("lm_head.weight"));
}

TEST(LlamaTest, WeightsComeFromTheSeedAlone) {
  at::manual_seed(5);
  const auto once = Llama(kSmall, 7)->named_parameters();
  at::manual_seed(6);
  const auto again = Llama(kSmall, 7)->named_parameters();
  for (const auto& item : once)
    EXPECT_TRUE(at::equal(item.value(), again[item.key()])) << item.key();
  EXPECT_FALSE(
      at::equal(once["lm_head.weight"], Llama(kSmall, 8)->named_parameters()["lm_head.weight"]));
}

TEST(LlamaTest, ATokenSeesNoLaterOneAndInAWindowNoEarlierOneThanItSays) {
  LlamaConfig windowed = kSmall;
  windowed.window = 3;
  windowed.is_windowed = {true, true};
  for (const LlamaConfig& config : {kSmall, windowed}) {
    const torch::NoGradGuard no_grad;
    Llama model(config, 3);
    const torch::Tensor tokens = some_tokens(1, 20);
    torch::Tensor changed = tokens.clone();
    changed[0][8] = 255;
    const torch::Tensor differs =
        (model->forward(tokens) - model->forward(changed)).abs().amax(-1)[0].gt(0);
    // Two layers of three positions each reach four back.
    const int64_t last = config.window > 0 ? 12 : 19;
    for (int64_t t = 0; t < 20; ++t)
      EXPECT_EQ(differs[t].item<bool>(), t >= 8 && t <= last) << t << " window " << config.window;
  }
}

TEST(LlamaTest, CheckpointedBlocksLeaveTheBitsOfAllGradients) {
  std::vector<torch::Tensor> gradients[2];
  for (const bool checkpoints : {false, true}) {
    Llama model(kSmall, 3);
    model->set_forward({.checkpoints_activations = checkpoints});
    model->loss(some_tokens(2, 24), some_tokens(2, 24).roll(1, 1)).backward();
    for (const auto& parameter : model->parameters())
      gradients[checkpoints ? 1 : 0].push_back(parameter.grad());
  }
  for (size_t i = 0; i < gradients[0].size(); ++i)
    EXPECT_TRUE(at::equal(gradients[0][i], gradients[1][i])) << i;
}

TEST(LlamaTest, SizesThatCannotBeAreRefusedByName) {
  const auto expect_refused = [](const std::function<void(LlamaConfig&)>& change,
                                 const std::string& why) {
    LlamaConfig config = kSmall;
    change(config);
    EXPECT_THAT([&] { validate(config); }, ThrowsMessage<ConfigError>(HasSubstr(why)));
  };
  expect_refused([](LlamaConfig& c) { c.kv_heads = 3; }, "heads = 4: must be a multiple of");
  expect_refused([](LlamaConfig& c) { c.head_width = 7; }, "head width = 7");
  expect_refused([](LlamaConfig& c) { c.layers = 0; }, "layers = 0");
  expect_refused([](LlamaConfig& c) { c.is_windowed = {true}; }, "for 1 layers of 2");
  expect_refused([](LlamaConfig& c) { c.rope = {.rule = RopeScaling::Rule::yarn, .factor = 2}; },
                 "context of pretraining");
}

}  // namespace
}  // namespace fusedbun::model

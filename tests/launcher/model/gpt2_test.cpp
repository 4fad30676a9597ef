#include "fusedbun/launcher/model/gpt2.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cmath>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fusedbun.h"

namespace fusedbun::model {
namespace {

constexpr Gpt2Config kSmall{.n_layer = 2, .n_head = 2, .n_embd = 32, .n_ctx = 24, .vocab = 256};

torch::Tensor counting_tokens(int64_t sequences, int64_t time) {
  return at::arange(sequences * time, at::kLong).remainder(kSmall.vocab).view({sequences, time});
}

TEST(Gpt2Test, HasTheNamesAndShapesOfHuggingFace) {
  const Gpt2 model(kSmall, 1);
  const auto parameters = model->named_parameters();
  EXPECT_EQ(parameters.size(), 2u + 2 * 12 + 2);
  EXPECT_EQ(parameters["wte.weight"].sizes(), (std::vector<int64_t>{256, 32}));
  EXPECT_EQ(parameters["wpe.weight"].sizes(), (std::vector<int64_t>{24, 32}));
  EXPECT_EQ(parameters["h.1.attn.c_attn.weight"].sizes(), (std::vector<int64_t>{96, 32}));
  EXPECT_EQ(parameters["h.1.mlp.c_proj.weight"].sizes(), (std::vector<int64_t>{32, 128}));
  EXPECT_EQ(parameters["ln_f.bias"].sizes(), (std::vector<int64_t>{32}));
  EXPECT_EQ(Gpt2(Gpt2Config{12, 12, 768, 1024, 50257}, 1)->parameter_count(), 124'439'808)
      << "as OpenAI's smallest";
}

TEST(Gpt2Test, WeightsComeFromTheSeedAlone) {
  at::manual_seed(5);
  const auto once = Gpt2(kSmall, 7)->named_parameters();
  at::manual_seed(6);
  const auto again = Gpt2(kSmall, 7)->named_parameters();
  const auto other = Gpt2(kSmall, 8)->named_parameters();
  for (const auto& item : once)
    EXPECT_TRUE(at::equal(item.value(), again[item.key()])) << item.key();
  EXPECT_FALSE(at::equal(once["wte.weight"], other["wte.weight"]));
}

TEST(Gpt2Test, StartsAsGpt2DoesWithEveryByteAboutEquallyLikely) {
  Gpt2 model(Gpt2Config{4, 4, 128, 64, 256}, 3);
  const auto parameters = model->named_parameters();
  EXPECT_NEAR(parameters["wte.weight"].std().item<double>(), 0.02, 0.001);
  EXPECT_NEAR(parameters["h.2.attn.c_proj.weight"].std().item<double>(), 0.02 / std::sqrt(8.0),
              0.001);
  EXPECT_EQ(parameters["h.2.attn.c_proj.bias"].abs().sum().item<double>(), 0);
  EXPECT_EQ(parameters["h.2.ln_1.weight"].mean().item<double>(), 1);
  const torch::Tensor tokens = counting_tokens(4, 64);
  const torch::Tensor others =
      (tokens + 100).remainder(256);  // tied weights favour the input itself
  EXPECT_NEAR(model->loss(tokens, others).item<double>(), std::log(256.0), 0.2);
}

TEST(Gpt2Test, TheDeviationOfTheWeightsIsTheConfigs) {
  const auto once = Gpt2(kSmall, 7)->named_parameters();
  Gpt2Config wide = kSmall;
  wide.initial_deviation = 0.08;
  const auto again = Gpt2(wide, 7)->named_parameters();
  for (const char* name : {"wte.weight", "h.1.mlp.c_proj.weight"})
    EXPECT_TRUE(at::allclose(4 * once[name], again[name], 1e-6)) << name;
  wide.initial_deviation = -1;
  EXPECT_THROW(validate(wide), ConfigError);
}

TEST(Gpt2Test, NoPositionSeesTheFuture) {
  const torch::NoGradGuard no_grad;
  Gpt2 model(kSmall, 1);
  const torch::Tensor tokens = counting_tokens(1, 24);
  torch::Tensor changed = tokens.clone();
  changed[0][15] = 200;
  const torch::Tensor before = model->forward(tokens), after = model->forward(changed);
  EXPECT_TRUE(at::allclose(before.narrow(1, 0, 15), after.narrow(1, 0, 15), 0, 1e-6));
  EXPECT_FALSE(at::allclose(before.narrow(1, 15, 1), after.narrow(1, 15, 1), 0, 1e-3));
}

TEST(Gpt2Test, ThirtyStepsLearnASimpleText) {
  at::set_num_threads(1);  // as small as this, threads only wait for each other
  Gpt2 model(kSmall, 1);
  fusedbun::Fusedbun optimizer(model->parameters(), FusedbunOptions::recommended(1e-2));
  const torch::Tensor tokens = counting_tokens(8, 24);
  const torch::Tensor inputs = tokens.narrow(1, 0, 23), targets = tokens.narrow(1, 1, 23);
  const double first = model->loss(inputs, targets).item<double>();
  for (int step = 0; step < 30; ++step) {
    model->zero_grad();
    model->loss(inputs, targets).backward();
    optimizer.step();
  }
  EXPECT_LT(model->loss(inputs, targets).item<double>(), 0.7 * first);
}

TEST(Gpt2Test, SizesThatCannotBeAreNamed) {
  EXPECT_THAT([] { validate(Gpt2Config{.n_head = 3}); },
              testing::ThrowsMessage<ConfigError>("width = 128: must be a multiple of heads = 3"));
  EXPECT_THAT([] { validate(Gpt2Config{.n_layer = 0}); },
              testing::ThrowsMessage<ConfigError>("layers = 0: must be at least 1"));
}

}  // namespace
}  // namespace fusedbun::model

#include "fusedbun/launcher/generate/generation.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2.h"

namespace fusedbun::generate {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class GenerationTest : public ::testing::Test {
 protected:
  GenerationTest() {
    const torch::NoGradGuard no_grad;
    for (at::Tensor& parameter : model_->parameters()) parameter.mul_(8);  // likelier tokens
  }

  StopReason run(const std::vector<int64_t>& prompt, const GenerateOptions& options) {
    tokens_.clear();
    return generate(*model_, prompt, options, [&](int64_t token) { tokens_.push_back(token); });
  }

  // The likeliest token after the whole sequence, again and again.
  std::vector<int64_t> likeliest_after(std::vector<int64_t> sequence, size_t count) {
    const torch::NoGradGuard no_grad;
    const size_t begin = sequence.size();
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor logits =
          model_->forward(at::tensor(sequence, at::kLong).unsqueeze(0))[0][-1];
      sequence.push_back(logits.argmax().item<int64_t>());
    }
    return {sequence.begin() + static_cast<int64_t>(begin), sequence.end()};
  }

  model::Gpt2 model_{model::Gpt2Config{.n_layer = 2, .n_head = 2, .n_embd = 16, .n_ctx = 16}, 4};
  std::vector<int64_t> tokens_;
};

const GenerateOptions kGreedy{.sampling = {.temperature = 0}, .max_tokens = 8};

TEST_F(GenerationTest, TheLikeliestFollowsTheWholeSequence) {
  const std::vector<int64_t> prompt = {5, 200, 33};
  EXPECT_EQ(run(prompt, kGreedy), StopReason::max_tokens);
  EXPECT_EQ(tokens_, likeliest_after(prompt, 8));
}

TEST_F(GenerationTest, EndsBeforeAnEndToken) {
  const std::vector<int64_t> prompt = {5, 200, 33}, all = likeliest_after(prompt, 8);
  const auto first = static_cast<size_t>(std::ranges::find(all, all[3]) - all.begin());
  GenerateOptions options = kGreedy;
  options.end_tokens = {256, all[3]};
  EXPECT_EQ(run(prompt, options), StopReason::end_of_text);
  EXPECT_EQ(tokens_, std::vector<int64_t>(all.begin(), all.begin() + static_cast<int64_t>(first)));
}

TEST_F(GenerationTest, EndsWhenTheContextIsFull) {
  // The token after the last position is still predicted.
  GenerateOptions options = kGreedy;
  options.max_tokens = 100;
  EXPECT_EQ(run(std::vector<int64_t>(14, 7), options), StopReason::context);
  EXPECT_EQ(tokens_.size(), 3u);
  EXPECT_EQ(run(std::vector<int64_t>(16, 7), options), StopReason::context);
  EXPECT_EQ(tokens_.size(), 1u);
}

TEST_F(GenerationTest, TheSeedDecides) {
  GenerateOptions options{.sampling = {.temperature = 1.5, .top_p = 1}, .max_tokens = 12};
  std::vector<std::vector<int64_t>> texts;
  for (const uint64_t seed : {1, 1, 2}) {
    options.seed = seed;
    run({1}, options);
    texts.push_back(tokens_);
  }
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_NE(texts[0], texts[2]);
}

TEST_F(GenerationTest, PromptsThatDoNotFitAreRefused) {
  EXPECT_THAT([&] { run({}, kGreedy); }, ThrowsMessage<ConfigError>(HasSubstr("is empty")));
  EXPECT_THAT([&] { run(std::vector<int64_t>(17, 7), kGreedy); },
              ThrowsMessage<ConfigError>(HasSubstr("has 17 tokens, and the model knows 16")));
  EXPECT_THAT(
      [&] {
        run({1, 256}, kGreedy);
      },
      ThrowsMessage<DataError>(HasSubstr("token 256, and the model has 256 token ids")));
}

}  // namespace
}  // namespace fusedbun::generate

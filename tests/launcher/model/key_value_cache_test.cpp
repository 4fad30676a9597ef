// A sequence that is continued token by token has the logits of one that is computed whole.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/llama.h"

namespace fusedbun::model {
namespace {

torch::Tensor some_tokens(int64_t sequences, int64_t time) {
  return at::arange(sequences * time, at::kLong).mul(7).remainder(256).view({sequences, time});
}

// The logits are between -10 and 10; sums of float32 are in another order.
void expect_same_logits(CausalLm& model, int64_t prompt) {
  const torch::NoGradGuard no_grad;
  const int64_t context = model.context();
  const torch::Tensor tokens = some_tokens(2, context);
  const torch::Tensor expected = model.forward(tokens);
  KeyValueCache cache;
  for (int64_t seen = 0; seen < context;) {
    const int64_t more = seen == 0 ? prompt : 1;
    const torch::Tensor logits = model.next_logits(tokens.narrow(1, seen, more), cache);
    seen += more;
    ASSERT_EQ(cache.length, seen);
    const double largest = (logits - expected.select(1, seen - 1)).abs().max().item<double>();
    ASSERT_LT(largest, 1e-4) << "after " << seen << " tokens, " << prompt << " of them at once";
  }
}

const LlamaConfig kLlama{.layers = 3,
                         .width = 32,
                         .mlp_width = 48,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_width = 8,
                         .context = 24,
                         .vocab = 256,
                         .initial_deviation = 0.3};

TEST(KeyValueCacheTest, Gpt2HasTheLogitsOfTheWholeSequence) {
  Gpt2 model(Gpt2Config{.n_layer = 3, .n_head = 4, .n_embd = 32, .n_ctx = 24}, 1);
  for (const int64_t prompt : {1, 2, 9, 24}) expect_same_logits(*model, prompt);
}

TEST(KeyValueCacheTest, LlamaHasTheLogitsOfTheWholeSequence) {
  LlamaConfig with_flags = kLlama;
  with_flags.qkv_bias = with_flags.qk_norm = with_flags.tied = true;
  with_flags.rope = {.rule = RopeScaling::Rule::linear, .factor = 2};
  for (const LlamaConfig& config : {kLlama, with_flags}) {
    Llama model(config, 1);
    for (const int64_t prompt : {1, 2, 9, 24}) expect_same_logits(*model, prompt);
  }
}

TEST(KeyValueCacheTest, WindowsSlide) {
  LlamaConfig windowed = kLlama;
  windowed.is_windowed = {true, false, true};
  for (const int64_t window : {1, 5, 23, 24}) {
    windowed.window = window;
    Llama model(windowed, 1);
    for (const int64_t prompt : {1, 4, 5, 6, 20}) expect_same_logits(*model, prompt);
  }
}

}  // namespace
}  // namespace fusedbun::model

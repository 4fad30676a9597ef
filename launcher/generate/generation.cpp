#include "fusedbun/launcher/generate/generation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::generate {
namespace {

void require_fits(const model::CausalLm& model, const std::vector<int64_t>& prompt) {
  FUSEDBUN_REQUIRE(!prompt.empty(), ConfigError, "--prompt is empty: give it a token to follow");
  FUSEDBUN_REQUIRE(std::ssize(prompt) <= model.context(), ConfigError,
                   "--prompt has " + std::to_string(prompt.size()) +
                       " tokens, and the model knows " + std::to_string(model.context()) +
                       " positions");
  const int64_t largest = std::ranges::max(prompt);
  FUSEDBUN_REQUIRE(largest < model.vocab(), DataError,
                   "the tokenizer gives token " + std::to_string(largest) + ", and the model has " +
                       std::to_string(model.vocab()) + " token ids: they are not of one model");
}

}  // namespace

std::string_view name_of(StopReason reason) {
  constexpr std::string_view kNames[] = {"end_of_text", "max_tokens", "context"};
  return kNames[static_cast<size_t>(reason)];
}

StopReason generate(model::CausalLm& model, const std::vector<int64_t>& prompt,
                    const GenerateOptions& options, const std::function<void(int64_t)>& on_token) {
  require_fits(model, prompt);
  std::mt19937_64 random(options.seed);
  model::KeyValueCache cache;
  at::Tensor input = at::tensor(prompt, at::kLong).unsqueeze(0);
  for (int64_t count = 0; count < options.max_tokens; ++count) {
    if (cache.length == model.context()) return StopReason::context;
    const at::Tensor logits = model.next_logits(input, cache).contiguous();
    const std::vector<Candidate> next = candidates(
        {logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())}, options.sampling);
    // 53 random bits: every double in [0, 1) that is a multiple of 2^-53, on every standard library.
    const int64_t token = choose(next, static_cast<double>(random() >> 11) * 0x1p-53);
    if (std::ranges::find(options.end_tokens, token) != options.end_tokens.end())
      return StopReason::end_of_text;
    on_token(token);
    input = at::full({1, 1}, token, at::kLong);
  }
  return StopReason::max_tokens;
}

}  // namespace fusedbun::generate

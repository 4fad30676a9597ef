#pragma once
// One token after another, until the text ends or may not grow.
//
// Thread safety: a function; the model is used by one thread at a time.
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/generate/sampling.h"
#include "fusedbun/launcher/model/causal_lm.h"

namespace fusedbun::generate {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 128;
  uint64_t seed = 1;
  std::vector<int64_t> end_tokens = {};
};

enum class StopReason { end_of_text, max_tokens, context };
/// "end_of_text".
std::string_view name_of(StopReason reason);

/// Calls `on_token` with each token that follows `prompt`; not with one of the end tokens, after which there is none. A function of model,
/// prompt and options alone. Throws ConfigError if the prompt is empty or longer than the model's context; DataError if a token of it is
/// not below the vocabulary, or the model's logits are not finite.
StopReason generate(model::CausalLm& model, const std::vector<int64_t>& prompt,
                    const GenerateOptions& options, const std::function<void(int64_t)>& on_token);

}  // namespace fusedbun::generate

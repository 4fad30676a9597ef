#include "fusedbun/launcher/model/llama_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::model {
namespace {

void require(bool is_good, const std::string& what) {
  FUSEDBUN_REQUIRE(is_good, ConfigError, what);
}

// Between pretraining's frequencies and those divided by the factor: waves that fit into the original context `high_frequency` times
// and more stay, those that fit fewer than `low_frequency` times are stretched.
double llama3_scaled(const RopeScaling& rope, double frequency) {
  const double turns =
      static_cast<double>(rope.original_context) * frequency / (2 * std::numbers::pi);
  if (turns > rope.high_frequency) return frequency;
  if (turns < rope.low_frequency) return frequency / rope.factor;
  const double smooth = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The pair whose wave turns so often in the original context.
double pair_with_turns(const LlamaConfig& config, double turns) {
  return static_cast<double>(config.head_width) *
         std::log(static_cast<double>(config.rope.original_context) /
                  (turns * 2 * std::numbers::pi)) /
         (2 * std::log(config.rope_theta));
}

std::vector<double> yarn_scaled(const LlamaConfig& config, std::vector<double> frequencies) {
  const RopeScaling& rope = config.rope;
  double low = pair_with_turns(config, rope.beta_fast);
  double high = pair_with_turns(config, rope.beta_slow);
  if (rope.truncates) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_width - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double stretched = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / rope.factor * stretched + frequencies[i] * (1 - stretched);
  }
  return frequencies;
}

}  // namespace

void validate(const LlamaConfig& config) {
  const auto require_positive = [](const char* name, int64_t value) {
    require(value >= 1, std::string(name) + " = " + std::to_string(value) + ": must be at least 1");
  };
  require_positive("layers", config.layers);
  require_positive("width", config.width);
  require_positive("mlp width", config.mlp_width);
  require_positive("heads", config.heads);
  require_positive("key/value heads", config.kv_heads);
  require_positive("head width", config.head_width);
  require_positive("context", config.context);
  require_positive("vocabulary", config.vocab);
  require(config.heads % config.kv_heads == 0,
          "heads = " + std::to_string(config.heads) +
              ": must be a multiple of key/value heads = " + std::to_string(config.kv_heads));
  require(config.head_width % 2 == 0, "head width = " + std::to_string(config.head_width) +
                                          ": rotary positions turn pairs, so it must be even");
  require(config.norm_epsilon > 0, "the norm's epsilon must be above 0");
  require(config.rope_theta > 1, "rope_theta must be above 1");
  require(config.initial_deviation >= 0, "the initial deviation must be at least 0");
  require(config.window >= 0,
          "window = " + std::to_string(config.window) + ": must be at least 0, where it is off");
  require(config.is_windowed.empty() || std::ssize(config.is_windowed) == config.layers,
          "windows are said for " + std::to_string(config.is_windowed.size()) + " layers of " +
              std::to_string(config.layers));
  const RopeScaling& rope = config.rope;
  if (rope.rule == RopeScaling::Rule::none) return;
  require(rope.factor >= 1, "the factor of rope scaling must be at least 1");
  if (rope.rule == RopeScaling::Rule::linear) return;
  require(rope.original_context >= 1, "rope scaling lacks the context of pretraining");
  require(rope.rule != RopeScaling::Rule::llama3 || rope.high_frequency > rope.low_frequency,
          "rope scaling: high_freq_factor must be above low_freq_factor");
}

std::vector<double> rotary_frequencies(const LlamaConfig& config) {
  const RopeScaling& rope = config.rope;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < config.head_width; i += 2) {
    const double frequency = std::pow(
        config.rope_theta, -static_cast<double>(i) / static_cast<double>(config.head_width));
    switch (rope.rule) {
      case RopeScaling::Rule::none:
      case RopeScaling::Rule::yarn:
        frequencies.push_back(frequency);
        break;
      case RopeScaling::Rule::linear:
        frequencies.push_back(frequency / rope.factor);
        break;
      case RopeScaling::Rule::llama3:
        frequencies.push_back(llama3_scaled(rope, frequency));
        break;
    }
  }
  return rope.rule == RopeScaling::Rule::yarn ? yarn_scaled(config, std::move(frequencies))
                                              : frequencies;
}

}  // namespace fusedbun::model

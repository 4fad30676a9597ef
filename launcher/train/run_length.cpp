#include "fusedbun/launcher/train/run_length.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr int64_t kStepsByDefault = 300;
/// Beyond any run; below it numbers of steps and of tokens are exact in a double.
constexpr double kStepsMax = 1e12, kTokensMax = 1e15;

std::string formatted(double value, const char* format = "%.6g") {
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// 1234567 -> "1,234,567"
std::string with_commas(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

double power_of(std::string_view suffix) {
  if (suffix.empty()) return 1;
  if (suffix == "k" || suffix == "K") return 1e3;
  if (suffix == "M") return 1e6;
  if (suffix == "G") return 1e9;
  return 0;
}

std::string tokens_text(double tokens) {
  if (tokens < 1e3) return formatted(tokens) + " tokens";
  if (tokens < 1e6) return formatted(tokens / 1e3, "%.3g") + " k tokens";
  if (tokens < 1e9) return formatted(tokens / 1e6, "%.3g") + " M tokens";
  return formatted(tokens / 1e9, "%.4g") + " G tokens";
}

/// Steps that take `sequences`; a hair above a whole number is rounding.
int64_t steps_for(double sequences, int64_t batch) {
  const double steps = std::ceil(sequences / static_cast<double>(batch) * (1 - 1e-12));
  return static_cast<int64_t>(std::clamp(steps, 1.0, kStepsMax));
}

}  // namespace

void validate(const RunLength& length) {
  const int given = (length.steps ? 1 : 0) + (length.epochs ? 1 : 0) + (length.tokens ? 1 : 0);
  FUSEDBUN_REQUIRE(given <= 1, ConfigError,
                   "--steps, --epochs and --tokens each say how long the run is: give one of them");
  FUSEDBUN_REQUIRE(
      !length.steps || *length.steps >= 1, ConfigError,
      "--steps = " + std::to_string(length.steps.value_or(0)) + ": must be at least 1");
  FUSEDBUN_REQUIRE(
      !length.epochs || (std::isfinite(*length.epochs) && *length.epochs > 0), ConfigError,
      "--epochs = " + formatted(length.epochs.value_or(0)) + ": must be above 0, and finite");
  FUSEDBUN_REQUIRE(
      !length.tokens || *length.tokens >= 1, ConfigError,
      "--tokens = " + std::to_string(length.tokens.value_or(0)) + ": must be at least 1");
}

int64_t steps_of(const RunLength& length, const SampleCounts& counts) {
  if (length.epochs)
    return steps_for(*length.epochs * static_cast<double>(counts.samples), counts.batch);
  if (length.tokens)
    return steps_for(static_cast<double>(*length.tokens) / static_cast<double>(counts.context),
                     counts.batch);
  return length.steps.value_or(kStepsByDefault);
}

int64_t parse_tokens(std::string_view text) {
  const char* const end = text.data() + text.size();
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  const double power = power_of({rest, end});
  const double tokens = std::round(number * power);
  const bool is_count = error == std::errc() && power > 0 && std::isfinite(number);
  FUSEDBUN_REQUIRE(is_count && tokens >= 1 && tokens <= kTokensMax, ConfigError,
                   "--tokens = " + std::string(text) +
                       ": at least 1, with k, M or G for thousands, millions and 10^9: 20.5M");
  return static_cast<int64_t>(tokens);
}

std::string describe_length(int64_t steps, const SampleCounts& counts) {
  const double sequences = static_cast<double>(steps) * static_cast<double>(counts.batch);
  const double epochs = sequences / static_cast<double>(std::max<int64_t>(1, counts.samples));
  const std::string epochs_text = formatted(epochs, epochs < 100 ? "%.3g" : "%.0f");
  return with_commas(steps) + (steps == 1 ? " step: " : " steps: ") + epochs_text +
         (epochs_text == "1" ? " epoch of " : " epochs of ") + with_commas(counts.samples) +
         " sequences, " + tokens_text(sequences * static_cast<double>(counts.context));
}

}  // namespace fusedbun::train

#include "fusedbun/launcher/train/run_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

// A flag's value stands under the flag's name.
constexpr std::string_view kBreaking[] = {"--seed",
                                          "--batch",
                                          "--context",
                                          "--optimizer",
                                          "--clip",
                                          "--bf16-wire",
                                          "--precision",
                                          "--loss-scale-growth-every",
                                          "the text of --data"};
constexpr std::string_view kSchedule[] = {"--steps", "--warmup", "--lr"};
constexpr const char* kFirstSample = "next sample";
constexpr const char* kFirstLoss = "first validation loss";
constexpr const char* kLossScale = "loss scale";
constexpr const char* kGoodSteps = "good steps at this loss scale";
constexpr const char* kSkippedInARow = "steps skipped in a row";
constexpr const char* kOutcomesAhead = "outcomes ahead of the loss scale";
// Checkpoints from before there was --precision.
constexpr std::string_view kPrecision = "--precision", kFirstPrecision = "float32";

std::string text_of(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

/// The number that `text` is, all of it; nothing if it is none.
template <class Number>
std::optional<Number> number_in(std::string_view text) {
  Number value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && rest == end ? std::optional(value) : std::nullopt;
}

std::string_view value_of(const RunValues& values, std::string_view name) {
  const auto found = values.find(name);
  if (found != values.end()) return found->second;
  return name == kPrecision ? kFirstPrecision : std::string_view();
}

std::string differences(const RunValues& saved, const RunValues& here,
                        std::span<const std::string_view> names) {
  std::string text;
  for (const std::string_view name : names) {
    const std::string_view before = value_of(saved, name), now = value_of(here, name);
    if (before.empty() || now.empty() || before == now) continue;
    text += (text.empty() ? "" : ", ") + std::string(name);
    text += " (" + std::string(before) + ", here " + std::string(now) + ")";
  }
  return text;
}

}  // namespace

RunValues values_of(const TrainOptions& options, int64_t context, double peak_lr,
                    uint64_t text_digest) {
  RunValues values{{"--seed", std::to_string(options.seed)},
                   {"--batch", std::to_string(options.batch)},
                   {"--context", std::to_string(context)},
                   {"--optimizer", describe(options.optimizer)},
                   {"--clip", text_of(options.max_grad_norm)},
                   {"--bf16-wire", options.bf16_on_wire ? "true" : "false"},
                   {"--precision", std::string(name_of(options.precision))},
                   {"--steps", std::to_string(options.steps)},
                   {"--warmup", std::to_string(options.warmup_steps)},
                   {"--lr", text_of(peak_lr)},
                   {"the text of --data", std::to_string(text_digest)}};
  if (scales_loss(options.precision)) {
    values["--loss-scale-growth-every"] = std::to_string(options.loss_scale.growth_interval);
  }
  return values;
}

void add_position(RunValues& values, int64_t job_step, int64_t batch,
                  double first_validation_loss) {
  values[kFirstSample] = std::to_string(job_step * batch);
  values[kFirstLoss] = text_of(first_validation_loss);
}

std::optional<double> first_validation_loss_in(const RunValues& saved) {
  const auto found = saved.find(kFirstLoss);
  return found == saved.end() ? std::nullopt : number_in<double>(found->second);
}

// An outcome is the scale that its step used and what became of it: "65536+" was good, "65536-" skipped.
void add_loss_scale(RunValues& values, const LossScaleState& state) {
  values[kLossScale] = text_of(state.scale);
  values[kGoodSteps] = std::to_string(state.good_steps);
  values[kSkippedInARow] = std::to_string(state.skipped_in_a_row);
  std::string ahead;
  for (const LossScaleState::Told& told : state.told) {
    ahead += (ahead.empty() ? "" : " ") + text_of(told.scale) + (told.skipped ? "-" : "+");
  }
  if (!ahead.empty()) values[kOutcomesAhead] = ahead;
}

std::optional<LossScaleState> loss_scale_in(const RunValues& saved) {
  if (saved.find(kLossScale) == saved.end()) return std::nullopt;
  const auto refuse_unless = [&](bool is_good, const char* name) {
    FUSEDBUN_REQUIRE(is_good, DataError,
                     "the checkpoint says '" + std::string(name) + "' = '" +
                         std::string(value_of(saved, name)) +
                         "', which is none: take an older checkpoint, or --overwrite");
  };
  const auto count = [&](const char* name) {
    const auto value = number_in<int64_t>(value_of(saved, name));
    refuse_unless(value && *value >= 0, name);
    return *value;
  };
  const auto is_scale = [](const std::optional<double>& value) {
    return value && *value > 0 && std::isfinite(*value);
  };
  const auto scale = number_in<double>(value_of(saved, kLossScale));
  refuse_unless(is_scale(scale), kLossScale);
  LossScaleState state{
      .scale = *scale, .good_steps = count(kGoodSteps), .skipped_in_a_row = count(kSkippedInARow)};
  std::string_view ahead = value_of(saved, kOutcomesAhead);
  while (!ahead.empty()) {
    const std::string_view word = ahead.substr(0, ahead.find(' '));
    ahead.remove_prefix(std::min(ahead.size(), word.size() + 1));
    refuse_unless(word.ends_with('+') || word.ends_with('-'), kOutcomesAhead);
    const auto used = number_in<double>(word.substr(0, word.size() - 1));
    refuse_unless(is_scale(used), kOutcomesAhead);
    state.told.push_back({*used, word.back() == '-'});
  }
  return state;
}

std::string differences_that_break(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kBreaking);
}

std::string differences_of_schedule(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kSchedule);
}

}  // namespace fusedbun::train

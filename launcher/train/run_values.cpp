#include "fusedbun/launcher/train/run_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>
#include <string_view>
#include <utility>

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
                                          "--decay-all",
                                          "--freeze",
                                          "--dropout",
                                          kConfigSays,
                                          "--precision",
                                          "--loss-scale-growth-every",
                                          "--packing",
                                          "--long-documents",
                                          "--attend-across-documents",
                                          "the order of samples",
                                          "the text of --data"};
constexpr std::string_view kSchedule[] = {"--steps",      "--warmup",
                                          "--lr",         "--schedule",
                                          "--min-lr",     "--decay",
                                          "--early-stop", "--early-stop-delta",
                                          "--eval-every", "--validation-batches"};
constexpr const char* kFirstSample = "next sample";
constexpr const char* kFirstLoss = "first validation loss";
constexpr const char* kBestStep = "best validation, steps done";
constexpr const char* kBestLoss = "best validation loss";
constexpr const char* kReference = "early stopping, reference";
constexpr const char* kWithoutBetter = "early stopping, validations without a better one";
/// What checkpoints mean that do not name a value yet.
struct UnsaidValue {
  std::string_view name, value;
};
constexpr UnsaidValue kUnsaid[] = {{"--precision", "float32"},
                                   {"--decay-all", "true"},
                                   {"--freeze", "nothing"},
                                   {"--dropout", "none"},
                                   {"--schedule", "cosine"},
                                   {"--min-lr", "0.1"},
                                   {"the order of samples", "drawn at random"}};

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
  const auto* const unsaid = std::ranges::find(kUnsaid, name, &UnsaidValue::name);
  return unsaid != std::end(kUnsaid) ? unsaid->value : std::string_view();
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

std::string listed(const std::vector<std::string>& patterns) {
  std::string text;
  for (const std::string& pattern : patterns) text += (text.empty() ? "" : " ") + pattern;
  return text.empty() ? "nothing" : text;
}

}  // namespace

RunValues values_of(const TrainOptions& options, int64_t context, const Schedule& schedule,
                    const model::DropoutRates& dropout, uint64_t text_digest) {
  RunValues values{
      {"--seed", std::to_string(options.seed)},
      {"--batch", std::to_string(options.batch)},
      {"--context", std::to_string(context)},
      {"--optimizer", describe(options.optimizer)},
      {"--clip", text_of(options.max_grad_norm)},
      {"--bf16-wire", options.bf16_on_wire ? "true" : "false"},
      {"--precision", std::string(name_of(options.precision))},
      {"--decay-all", decays_all(options.optimizer) ? "true" : "false"},
      {"--freeze", listed(options.freeze)},
      {"--dropout", model::describe(dropout)},
      {"--steps", std::to_string(schedule.total_steps)},
      {"--warmup", std::to_string(schedule.warmup_steps)},
      {"--lr", text_of(schedule.peak)},
      {"--schedule", std::string(name_of(schedule.kind))},
      {"--min-lr", text_of(schedule.floor_fraction)},
      {"--early-stop", std::to_string(options.early_stopping.patience)},
      {"--eval-every", std::to_string(options.eval_every)},
      {"--validation-batches", std::to_string(options.validation_batches)},
      {"--early-stop-delta", text_of(options.early_stopping.min_delta)},
      {"--packing", std::string(data::name_of(options.packing))},
      {"--long-documents", std::string(data::name_of(options.long_documents))},
      {"--attend-across-documents", options.attends_across_documents ? "true" : "false"},
      {"the order of samples", "shuffled by epoch"},
      {"the text of --data", std::to_string(text_digest)}};
  if (scales_loss(options.precision)) {
    values["--loss-scale-growth-every"] = std::to_string(options.loss_scale.growth_interval);
  }
  if (schedule.kind == ScheduleKind::wsd)
    values["--decay"] = std::to_string(schedule.decay_steps) + " steps";
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

void add_validations(RunValues& values, const ValidationHistory& history) {
  if (history.best) {
    values[kBestStep] = std::to_string(history.best->job_step);
    values[kBestLoss] = text_of(history.best->loss);
  }
  if (history.reference) values[kReference] = text_of(*history.reference);
  values[kWithoutBetter] = std::to_string(history.without_better);
}

ValidationHistory validations_in(const RunValues& saved) {
  ValidationHistory history;
  const auto best_step = number_in<int64_t>(value_of(saved, kBestStep));
  const auto best_loss = number_in<double>(value_of(saved, kBestLoss));
  if (best_step && best_loss) history.best = {*best_step, *best_loss};
  history.reference = number_in<double>(value_of(saved, kReference));
  history.without_better = number_in<int64_t>(value_of(saved, kWithoutBetter)).value_or(0);
  return history;
}

std::string differences_that_break(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kBreaking);
}

std::string differences_of_schedule(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kSchedule);
}

}  // namespace fusedbun::train

#include "fusedbun/launcher/train/run_values.h"

#include <charconv>
#include <span>
#include <string_view>

namespace fusedbun::train {
namespace {

// A flag's value stands under the flag's name.
constexpr std::string_view kBreaking[] = {
    "--seed", "--batch", "--context", "--optimizer", "--clip", "--bf16-wire", "the text of --data"};
constexpr std::string_view kSchedule[] = {"--steps", "--warmup", "--lr"};
constexpr const char* kFirstSample = "next sample";
constexpr const char* kFirstLoss = "first validation loss";

std::string text_of(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

std::string differences(const RunValues& saved, const RunValues& here,
                        std::span<const std::string_view> names) {
  std::string text;
  for (const std::string_view name : names) {
    const auto before = saved.find(name), now = here.find(name);
    if (before == saved.end() || now == here.end() || before->second == now->second) continue;
    text += (text.empty() ? "" : ", ") + std::string(name);
    text += " (" + before->second + ", here " + now->second + ")";
  }
  return text;
}

}  // namespace

RunValues values_of(const TrainOptions& options, int64_t context, double peak_lr,
                    uint64_t text_digest) {
  return {{"--seed", std::to_string(options.seed)},
          {"--batch", std::to_string(options.batch)},
          {"--context", std::to_string(context)},
          {"--optimizer", describe(options.optimizer)},
          {"--clip", text_of(options.max_grad_norm)},
          {"--bf16-wire", options.bf16_on_wire ? "true" : "false"},
          {"--steps", std::to_string(options.steps)},
          {"--warmup", std::to_string(options.warmup_steps)},
          {"--lr", text_of(peak_lr)},
          {"the text of --data", std::to_string(text_digest)}};
}

void add_position(RunValues& values, int64_t job_step, int64_t batch,
                  double first_validation_loss) {
  values[kFirstSample] = std::to_string(job_step * batch);
  values[kFirstLoss] = text_of(first_validation_loss);
}

std::optional<double> first_validation_loss_in(const RunValues& saved) {
  const auto found = saved.find(kFirstLoss);
  if (found == saved.end()) return std::nullopt;
  double value = 0;
  const char* const end = found->second.data() + found->second.size();
  const auto [rest, error] = std::from_chars(found->second.data(), end, value);
  return error == std::errc() && rest == end ? std::optional(value) : std::nullopt;
}

std::string differences_that_break(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kBreaking);
}

std::string differences_of_schedule(const RunValues& saved, const RunValues& here) {
  return differences(saved, here, kSchedule);
}

}  // namespace fusedbun::train

#include "fusedbun/launcher/train/schedule.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <numbers>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr int64_t kWarmupSteps = 50;
constexpr int64_t kWarmupPartMin = 4;  ///< the default warm-up takes at most 1 / 4 of the run
constexpr double kDecayFraction = 0.2;

constexpr std::array<std::string_view, 4> kScheduleNames = {"cosine", "linear", "constant", "wsd"};

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// From 1 to 0 while `done` goes from 0 to 1.
double half_cosine(double done) {
  return (1 + std::cos(std::numbers::pi * done)) / 2;
}

int64_t part_of(double fraction, int64_t steps) {
  return std::llround(fraction * static_cast<double>(steps));
}

void require_fraction(const char* flag, const std::optional<double>& value) {
  FUSEDBUN_REQUIRE(!value || (*value >= 0 && *value <= 1), ConfigError,
                   std::string(flag) + " = " + short_text(value.value_or(0)) + ": from 0 to 1");
}

int64_t warmup_steps_of(const std::optional<Warmup>& warmup, int64_t total_steps) {
  if (!warmup) return std::min(kWarmupSteps, total_steps / kWarmupPartMin);
  if (const auto* steps = std::get_if<int64_t>(&*warmup)) return *steps;
  return part_of(std::get<double>(*warmup), total_steps);
}

}  // namespace

double learning_rate(const Schedule& schedule, int64_t job_step) {
  if (job_step < schedule.warmup_steps) {
    return schedule.peak * static_cast<double>(job_step + 1) /
           static_cast<double>(schedule.warmup_steps + 1);
  }
  if (schedule.kind == ScheduleKind::constant) return schedule.peak;
  int64_t decay_begin = schedule.warmup_steps;
  if (schedule.kind == ScheduleKind::wsd)
    decay_begin = std::max(decay_begin, schedule.total_steps - schedule.decay_steps);
  const auto decaying_steps =
      static_cast<double>(std::max<int64_t>(1, schedule.total_steps - decay_begin));
  const double done =
      std::clamp(static_cast<double>(job_step - decay_begin) / decaying_steps, 0.0, 1.0);
  const double left = schedule.kind == ScheduleKind::linear ? 1 - done : half_cosine(done);
  return schedule.peak * (schedule.floor_fraction + (1 - schedule.floor_fraction) * left);
}

void validate(const ScheduleChoice& choice) {
  const std::string schedule = "--schedule " + std::string(name_of(choice.kind));
  FUSEDBUN_REQUIRE(!choice.floor_fraction || choice.kind != ScheduleKind::constant, ConfigError,
                   "--min-lr: " + schedule + " stays at the peak: leave one of them out");
  FUSEDBUN_REQUIRE(!choice.decay_fraction || choice.kind == ScheduleKind::wsd, ConfigError,
                   "--decay is the part of the run in which --schedule wsd decays, and this is " +
                       schedule + ": leave it out, or take wsd");
  require_fraction("--min-lr", choice.floor_fraction);
  require_fraction("--decay", choice.decay_fraction);
  if (!choice.warmup) return;
  const auto* steps = std::get_if<int64_t>(&*choice.warmup);
  FUSEDBUN_REQUIRE(
      steps == nullptr || *steps >= 0, ConfigError,
      "--warmup = " + std::to_string(steps != nullptr ? *steps : 0) + ": must be at least 0");
  const auto* part = std::get_if<double>(&*choice.warmup);
  FUSEDBUN_REQUIRE(
      part == nullptr || (*part >= 0 && *part <= 1), ConfigError,
      "--warmup = " + short_text(part != nullptr ? 100 * *part : 0) + "%: from 0% to 100%");
}

Schedule schedule_of(const ScheduleChoice& choice, double peak, int64_t total_steps) {
  Schedule schedule{.peak = peak,
                    .warmup_steps = warmup_steps_of(choice.warmup, total_steps),
                    .total_steps = total_steps,
                    .floor_fraction = choice.floor_fraction.value_or(
                        choice.kind == ScheduleKind::linear ? 0 : 0.1),
                    .kind = choice.kind};
  if (choice.kind == ScheduleKind::constant) schedule.floor_fraction = 1;
  if (choice.kind == ScheduleKind::wsd) {
    schedule.decay_steps =
        std::max<int64_t>(1, part_of(choice.decay_fraction.value_or(kDecayFraction), total_steps));
  }
  return schedule;
}

Warmup parse_warmup(std::string_view text) {
  const char* const end = text.data() + text.size();
  int64_t steps = 0;
  const auto whole = std::from_chars(text.data(), end, steps);
  if (whole.ec == std::errc() && whole.ptr == end) return steps;
  double percent = 0;
  const auto part = std::from_chars(text.data(), end, percent);
  const bool is_percent =
      part.ec == std::errc() && std::string_view(part.ptr, end) == "%" && std::isfinite(percent);
  FUSEDBUN_REQUIRE(
      is_percent, ConfigError,
      "--warmup = " + std::string(text) + ": a number of steps (50), or a part of the run (5%)");
  return percent / 100;
}

ScheduleKind parse_schedule(std::string_view name) {
  const auto found = std::ranges::find(kScheduleNames, name);
  FUSEDBUN_REQUIRE(found != kScheduleNames.end(), ConfigError,
                   "--schedule = " + std::string(name) + ": cosine, linear, constant or wsd");
  return static_cast<ScheduleKind>(found - kScheduleNames.begin());
}

std::string_view name_of(ScheduleKind kind) {
  return kScheduleNames.at(static_cast<size_t>(kind));
}

std::string describe(const Schedule& schedule) {
  if (schedule.warmup_steps >= schedule.total_steps)
    return "only rises: " + std::to_string(schedule.warmup_steps) +
           " steps of warm-up take all of the " + std::to_string(schedule.total_steps) +
           " steps of the run";
  std::string text =
      std::string(name_of(schedule.kind)) + ", " + std::to_string(schedule.warmup_steps) + " of " +
      std::to_string(schedule.total_steps) + " steps of warm-up to " + short_text(schedule.peak);
  if (schedule.kind == ScheduleKind::constant) return text + ", which stays";
  text += ", then down to " + short_text(schedule.peak * schedule.floor_fraction);
  if (schedule.kind == ScheduleKind::wsd)
    text += " in the last " + std::to_string(schedule.decay_steps);
  return text;
}

}  // namespace fusedbun::train

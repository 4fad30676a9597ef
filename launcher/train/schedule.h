#pragma once
// The learning rate of a job step: linear warm-up to the peak, then one of the schedules that transformers has under these names
// (get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup, get_constant_schedule_with_warmup, get_wsd_schedule).
//
//   cosine     down to the floor along half a cosine (Loshchilov, Hutter 2016)
//   linear     down to the floor along a line
//   constant   stays at the peak
//   wsd        warmup, stable, decay: stays at the peak, and goes down to the floor in the last part of the run (Hu et al. 2024, MiniCPM),
//              along half a cosine, which is get_wsd_schedule's default
//
// Unlike transformers', warm-up begins above 0, so that no step is lost.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace fusedbun::train {

enum class ScheduleKind : uint8_t { cosine, linear, constant, wsd };

struct Schedule {
  double peak = 0;
  int64_t warmup_steps = 0;  ///< steps below the peak; the first has peak / (warmup_steps + 1)
  int64_t total_steps = 1;
  double floor_fraction = 0.1;  ///< of the peak, reached at the end; constant has none
  ScheduleKind kind = ScheduleKind::cosine;
  int64_t decay_steps = 0;  ///< of wsd: the last ones; at least 1
};

/// `job_step` counts from 0. After the last step it stays at the floor.
double learning_rate(const Schedule& schedule, int64_t job_step);

/// A number of steps, or a part of the run in [0, 1].
using Warmup = std::variant<int64_t, double>;

/// What was asked for. How many steps it means is known when the length of the run is.
struct ScheduleChoice {
  ScheduleKind kind = ScheduleKind::cosine;
  std::optional<double> floor_fraction = {};  ///< unset: 0.1; linear, as in transformers: 0
  std::optional<double> decay_fraction = {};  ///< of the run, for wsd; unset: 0.2
  std::optional<Warmup> warmup = {};          ///< unset: 50 steps, and at most a quarter of the run
};

/// Throws ConfigError "--flag = value: ..." for a value out of range, or one that the schedule has no use for.
void validate(const ScheduleChoice& choice);
Schedule schedule_of(const ScheduleChoice& choice, double peak, int64_t total_steps);

/// "50" or "5%"; throws ConfigError.
Warmup parse_warmup(std::string_view text);
/// "cosine"; throws ConfigError listing the names.
ScheduleKind parse_schedule(std::string_view name);
std::string_view name_of(ScheduleKind kind);

/// "linear, 50 of 300 steps of warm-up to 0.003, then down to 0".
std::string describe(const Schedule& schedule);

}  // namespace fusedbun::train

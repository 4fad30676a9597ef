#include "fusedbun/launcher/train/checkpoint_schedule.h"

#include <charconv>
#include <cmath>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

double seconds_of(std::string_view unit) {
  if (unit == "s") return 1;
  if (unit == "m" || unit == "min") return 60;
  if (unit == "h") return 3600;
  return 0;
}

}  // namespace

CheckpointEvery parse_checkpoint_every(std::string_view text) {
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(rest, text.data() + text.size());
  const bool is_number = error == std::errc() && std::isfinite(number) && number >= 0;
  if (is_number && unit.empty() && number == std::floor(number) && number < 1e15) {
    return {.steps = static_cast<int64_t>(number)};
  }
  if (is_number && seconds_of(unit) > 0 && number > 0)
    return {.seconds = number * seconds_of(unit)};
  throw ConfigError("--checkpoint-every = " + std::string(text) +
                    ": a number of steps (500), or a time (90s, 10m, 1h); 0: only when the run is "
                    "asked to leave");
}

}  // namespace fusedbun::train

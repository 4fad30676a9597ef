#include "fusedbun/launcher/train/progress.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace fusedbun::train {
namespace {

using namespace std::chrono_literals;
constexpr std::string_view kEraseLine = "\r\033[K";

std::string clock_of(double seconds) {
  const auto whole = static_cast<int64_t>(std::lround(std::max(0.0, seconds)));
  char text[32];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(whole / 3600),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60),
                  static_cast<int>(whole % 60));
  }
  return text;
}

}  // namespace

std::string format(const StepLine& line) {
  char text[192], scale[48] = "";
  if (line.loss_scale) std::snprintf(scale, sizeof scale, "scale %g  ", *line.loss_scale);
  const bool thousands = line.tokens_per_second >= 1000;
  std::snprintf(text, sizeof text, "step %lld/%lld  loss %.4f  %s%.1f%s tokens/s  %s left",
                static_cast<long long>(line.job_step + 1), static_cast<long long>(line.total_steps),
                line.loss, scale,
                thousands ? line.tokens_per_second / 1000 : line.tokens_per_second,
                thousands ? " k" : "", clock_of(line.seconds_left).c_str());
  return text;
}

Progress::~Progress() {
  if (line_open_) screen_("\n");
}

void Progress::write_to(const std::filesystem::path& log) {
  log_ = std::make_unique<run_folder::LineFile>(
      log, [this](const std::string& sentence) { show(sentence); });
}

void Progress::say(std::string_view sentence) {
  const std::lock_guard lock(mutex_);
  put(sentence);
}

void Progress::put(std::string_view line, const std::vector<launcher::LogField>& fields) {
  if (log_) log_->append(line);
  show(line, fields);
}

void Progress::show(std::string_view line, const std::vector<launcher::LogField>& fields) {
  if (!screen_) return;
  const auto written = [&](std::string_view sentence,
                           const std::vector<launcher::LogField>& numbers) {
    return style_ == Style::json ? launcher::log_record("info", sentence, numbers)
                                 : std::string(sentence) + "\n";
  };
  std::string text(line_open_ ? kEraseLine : "");
  if (not_shown_ > 0)
    text += written("(" + std::to_string(not_shown_) + " lines are missing here: nobody read them)",
                    {});
  text += written(line, fields);
  if (screen_(text)) {
    line_open_ = false;
    not_shown_ = 0;
  } else {
    ++not_shown_;
  }
}

void Progress::step(const StepLine& line, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const auto interval = style_ == Style::rewritten ? 100ms : 10s;
  const bool is_last = line.job_step + 1 == line.total_steps;
  if (last_shown_ && now - *last_shown_ < interval && !is_last) return;
  last_shown_ = now;
  if (style_ != Style::rewritten) {
    put(format(line), {{"step", line.job_step},
                       {"total_steps", line.total_steps},
                       {"loss", line.loss},
                       {"tokens_per_second", line.tokens_per_second},
                       {"seconds_left", line.seconds_left}});
  } else if (screen_ && screen_(std::string(kEraseLine) + format(line))) {
    line_open_ = true;
  }
}

Progress::Style style_of_stderr() {
  const char* terminal = std::getenv("TERM");
  const bool can_erase = terminal != nullptr && std::string_view(terminal) != "dumb";
  return ::isatty(STDERR_FILENO) != 0 && can_erase ? Progress::Style::rewritten
                                                   : Progress::Style::plain;
}

}  // namespace fusedbun::train

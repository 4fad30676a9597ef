#include "fusedbun/launcher/control/watch_view.h"

#include <algorithm>
#include <cstdio>

#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/change_text.h"
#include "fusedbun/launcher/control/rank_table.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;
using control::v1::Job;
using control::v1::MetricsSample;

constexpr size_t kPointsMax = 8192;
constexpr std::string_view kLearningRate = "learning_rate/";
constexpr int kChangesShown = 5;
constexpr int kChartLinesMin = 7;
constexpr int kAxisWidth = 9;  // what draw_chart puts before its curve

template <class... Values>
std::string print(const char* format, Values... values) {
  char text[128];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::string with_thousands(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

std::optional<double> value_of(const MetricsSample& sample, const std::string& name) {
  const auto found = sample.values().find(name);
  if (found == sample.values().end()) return {};
  return found->second;
}

/// By group, in order of name.
std::vector<std::pair<std::string, double>> learning_rates_of(const MetricsSample& sample) {
  std::vector<std::pair<std::string, double>> rates;
  for (const auto& [name, value] : sample.values()) {
    if (name.starts_with(kLearningRate))
      rates.emplace_back(name.substr(kLearningRate.size()), value);
  }
  std::ranges::sort(rates);
  return rates;
}

std::string rates_text(const MetricsSample& sample) {
  const auto rates = learning_rates_of(sample);
  std::string text = "lr";
  const bool all_alike =
      std::ranges::adjacent_find(rates, std::ranges::not_equal_to(),
                                 &std::pair<std::string, double>::second) == rates.end();
  for (const auto& [group, rate] : rates) {
    if (all_alike && group != rates.front().first) continue;
    text += all_alike ? "" : " " + group;
    text += print(" %.4g", rate);
  }
  const double scale = value_of(sample, "lr_scale").value_or(1);
  return scale == 1 ? text : text + print(" (scale %g)", scale);
}

std::string speed_text(double tokens_per_second) {
  return tokens_per_second >= 1000 ? print("%.1f k tokens/s", tokens_per_second / 1000)
                                   : print("%.0f tokens/s", tokens_per_second);
}

std::string title_of(const WatchView& view) {
  if (!view.job) return view.where;
  const Job& job = *view.job;
  std::string text =
      view.where + "  " + Job::State_Name(job.state()) + "  step " + with_thousands(job.step());
  if (job.total_steps() > 0) {
    text += " of " + with_thousands(job.total_steps()) +
            print(" (%.0f %%)",
                  100.0 * static_cast<double>(job.step()) / static_cast<double>(job.total_steps()));
  }
  return text + "  " + std::to_string(job.world_size()) +
         (job.world_size() == 1 ? " rank" : " ranks") + " over " + job.backend();
}

std::string numbers_of(const MetricsSample& sample) {
  std::string text;
  if (const auto loss = value_of(sample, "loss")) text += print("loss %.4f   ", *loss);
  if (const auto speed = value_of(sample, "tokens_per_second")) text += speed_text(*speed) + "   ";
  text += rates_text(sample);
  if (const auto norm = value_of(sample, "gradient_norm"); norm.value_or(0) > 0)
    text += print("   gradient norm %.3g", *norm);
  return text;
}

std::string times_of(const MetricsSample& sample) {
  std::string text;
  if (const auto step = value_of(sample, "step_seconds"))
    text += print("step %.1f ms", *step * 1e3);
  const auto gradients = value_of(sample, "gradients_seconds");
  const auto optimizer = value_of(sample, "optimizer_seconds");
  if (gradients && optimizer)
    text +=
        print(": forward and backward %.1f, optimizer %.1f", *gradients * 1e3, *optimizer * 1e3);
  if (const auto skipped = value_of(sample, "skipped_steps"); skipped.value_or(0) > 0)
    text += print("   %.0f skipped", *skipped);
  return text;
}

std::vector<ChartMark> marks_of(const std::vector<Change>& changes) {
  std::vector<ChartMark> marks;
  for (const Change& change : changes) {
    if (change.state() == Change::APPLIED && change.cancels() == 0)
      marks.push_back({change.effective_step(), std::to_string(change.revision())});
  }
  std::ranges::stable_sort(marks, {}, &ChartMark::step);
  return marks;
}

std::vector<std::string> change_lines(const std::vector<Change>& changes) {
  std::vector<std::vector<std::string>> rows;
  const size_t shown = std::min<size_t>(changes.size(), kChangesShown);
  for (size_t i = changes.size() - shown; i < changes.size(); ++i) {
    const Change& change = changes[i];
    rows.push_back({"▲ " + std::to_string(change.revision()),
                    "step " + std::to_string(change.effective_step()),
                    Change::State_Name(change.state()), what(change), change.actor(),
                    change.reason()});
  }
  return aligned(rows);
}

/// A whole screen's worth of curve: losses as an area, the learning rate as one line above it.
void add_curves(const WatchView& view, const TerminalSize& size, int height,
                std::vector<std::string>& lines) {
  const std::vector<double> rates = binned(view.learning_rates, size.columns - kAxisWidth);
  lines.push_back(padded("     lr", kAxisWidth) + draw_levels(rates));
  const auto chart = draw_chart(view.losses, marks_of(view.changes), {size.columns, height - 1});
  lines.insert(lines.end(), chart.begin(), chart.end());
}

}  // namespace

void WatchView::add(const MetricsSample& sample) {
  last = sample;
  const auto put = [&](std::vector<ChartPoint>& points, double value) {
    if (!points.empty() && points.back().step >= sample.step()) return;
    points.push_back({sample.step(), value});
    if (points.size() <= kPointsMax) return;
    size_t kept = 0;
    std::erase_if(points, [&](const ChartPoint&) { return kept++ % 2 == 1; });
  };
  if (const auto loss = value_of(sample, "loss")) put(losses, *loss);
  if (const auto rates = learning_rates_of(sample); !rates.empty())
    put(learning_rates, rates.front().second);
}

std::vector<std::string> render(const WatchView& view, const TerminalSize& size) {
  std::vector<std::string> below = {""};
  for (const std::string& line : change_lines(view.changes)) below.push_back(line);
  if (below.size() > 1) below.emplace_back();
  for (const std::string& line : rank_table(view.ranks)) below.push_back(line);

  std::vector<std::string> lines = {title_of(view)};
  const bool has_reason = view.job && !view.job->state_reason().empty();
  if (has_reason) lines.push_back(view.job->state_reason());
  if (view.last) {
    lines.push_back(numbers_of(*view.last));
    lines.push_back(times_of(*view.last));
  }
  lines.emplace_back();
  // The curve takes what the rest leaves, but is never squeezed away by a long list of ranks.
  const int rest = static_cast<int>(lines.size() + below.size()) + 1;
  const int height = std::clamp(size.lines - rest, kChartLinesMin, 20);
  add_curves(view, size, height, lines);
  lines.insert(lines.end(), below.begin(), below.end());
  const auto room = static_cast<size_t>(std::max(size.lines - 1, 1));
  if (lines.size() > room) lines.resize(room);
  lines.push_back(view.trouble.empty() ? "q quits" : view.trouble + "   q quits");
  for (std::string& line : lines) line = cut(shown(line), static_cast<size_t>(size.columns));
  return lines;
}

std::string line_of(const MetricsSample& sample, int64_t total_steps) {
  std::string text = "step " + std::to_string(sample.step() + 1);
  if (total_steps > 0) text += " of " + std::to_string(total_steps);
  if (const auto loss = value_of(sample, "loss")) text += print("  loss %.4f", *loss);
  text += "  " + rates_text(sample);
  if (const auto speed = value_of(sample, "tokens_per_second")) text += "  " + speed_text(*speed);
  return text;
}

}  // namespace fusedbun::launcher

#include "fusedbun/launcher/control/loss_chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

constexpr const char* kLevels[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr int kEighths = 8;
constexpr int kLabelWidth = 7;  // "12.3456"

std::string label_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%*.*g", kLabelWidth, 4, value);
  return text;
}

/// Steps of the first and last point.
struct Range {
  int64_t first = 0;
  int64_t last = 0;

  int column_of(int64_t step, int columns) const {
    if (last == first) return 0;
    return static_cast<int>((step - first) * (columns - 1) / (last - first));
  }
};

Range range_of(std::span<const ChartPoint> points) {
  return {points.front().step, points.back().step};
}

/// The curve alone: `height` lines, the lowest level one eighth high so that it can be seen.
std::vector<std::string> draw_area(std::span<const double> values, double low, double high,
                                   int height) {
  std::vector<std::string> lines(height);
  for (const double value : values) {
    const double share = high > low ? (value - low) / (high - low) : 0;
    const int eighths = 1 + static_cast<int>(std::lround(share * (height * kEighths - 1)));
    for (int line = 0; line < height; ++line) {
      const int below = (height - 1 - line) * kEighths;
      lines[line] += kLevels[std::clamp(eighths - below, 0, kEighths)];
    }
  }
  return lines;
}

std::string axis_with(std::span<const ChartMark> marks, const Range& range, int columns) {
  std::vector<std::string> cells(columns, "─");
  for (const ChartMark& mark : marks) {
    if (mark.step >= range.first && mark.step <= range.last)
      cells[range.column_of(mark.step, columns)] = "▲";
  }
  std::string axis;
  for (const std::string& cell : cells) axis += cell;
  return axis;
}

/// Labels of marks under their columns; one that would touch the label before it is left out.
std::string labels_of(std::span<const ChartMark> marks, const Range& range, int columns) {
  std::string line;
  for (const ChartMark& mark : marks) {
    if (mark.step < range.first || mark.step > range.last) continue;
    const auto column = static_cast<size_t>(range.column_of(mark.step, columns));
    if (!line.empty() && column < width_of(line) + 1) continue;
    line = padded(std::move(line), column) + mark.label;
  }
  return cut(line, columns);
}

std::string steps_of(const Range& range, int columns) {
  const std::string first = "step " + std::to_string(range.first);
  const std::string last = std::to_string(range.last);
  const int gap = columns - static_cast<int>(first.size() + last.size());
  return gap > 0 ? first + std::string(gap, ' ') + last : cut(first, columns);
}

}  // namespace

std::vector<double> binned(std::span<const ChartPoint> points, int columns) {
  if (points.empty() || columns <= 0) return {};
  std::vector<double> sums(columns, 0);
  std::vector<int64_t> counts(columns, 0);
  const Range range = range_of(points);
  for (const ChartPoint& point : points) {
    if (!std::isfinite(point.value)) continue;
    const int column = range.column_of(point.step, columns);
    sums[column] += point.value;
    ++counts[column];
  }
  std::vector<double> values(columns);
  int before = -1;  // the last column with a point
  for (int column = 0; column < columns; ++column) {
    if (counts[column] == 0) continue;
    values[column] = sums[column] / static_cast<double>(counts[column]);
    for (int gap = before + 1; gap < column; ++gap) {
      const double share = static_cast<double>(gap - before) / (column - before);
      values[gap] =
          before < 0 ? values[column] : values[before] + share * (values[column] - values[before]);
    }
    before = column;
  }
  if (before < 0) return {};
  std::fill(values.begin() + before + 1, values.end(), values[before]);
  return values;
}

std::vector<std::string> draw_chart(std::span<const ChartPoint> points,
                                    std::span<const ChartMark> marks, const ChartSize& size) {
  const int columns = size.width - kLabelWidth - 2;
  const int height = size.height - 3;
  const std::vector<double> values = binned(points, columns);
  const std::string indent(kLabelWidth + 2, ' ');
  std::vector<std::string> lines;
  if (values.empty() || height < 1) {  // also where there is no room
    lines.assign(std::max(size.height, 0), "");
    if (!lines.empty()) lines[lines.size() / 2] = indent + "no step has ended yet";
    return lines;
  }
  const auto [low, high] = std::ranges::minmax_element(values);
  const std::vector<std::string> area = draw_area(values, *low, *high, height);
  for (int line = 0; line < height; ++line) {
    std::string label(kLabelWidth, ' ');
    if (line == 0) label = label_of(*high);
    if (line == height - 1 && height > 1) label = label_of(*low);
    lines.push_back(label + (line == 0 || line == height - 1 ? " ┤" : " │") + area[line]);
  }
  const Range range = range_of(points);
  lines.push_back(std::string(kLabelWidth + 1, ' ') + "└" + axis_with(marks, range, columns));
  lines.push_back(indent + labels_of(marks, range, columns));
  lines.push_back(indent + steps_of(range, columns));
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

std::string draw_levels(std::span<const double> values) {
  if (values.empty()) return "";
  const auto [low, high] = std::ranges::minmax_element(values);
  std::string line;
  for (const double value : values) {
    const double share = *high > *low ? (value - *low) / (*high - *low) : 0;
    line += kLevels[1 + static_cast<int>(std::lround(share * (kEighths - 1)))];
  }
  return line;
}

}  // namespace fusedbun::launcher

#pragma once
// LossChart: numbers over job steps as columns of block characters, eight levels to a line, with the steps marked at
// which something changed. Pure.
//
// Thread safety: functions without state.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fusedbun::launcher {

struct ChartPoint {
  int64_t step = 0;
  double value = 0;
};

/// A change that took effect at `step`, shown as `label` under its column.
struct ChartMark {
  int64_t step = 0;
  std::string label;
};

struct ChartSize {
  int width = 80;   ///< characters, axis included
  int height = 10;  ///< lines, axis and marks included; at least 4
};

/// The mean value of each of `columns` equal spans of steps, from the first point's to the last's; where a span has
/// no point, on the line between its neighbours. Points that are NaN or inf are left out. Empty if there are none.
std::vector<double> binned(std::span<const ChartPoint> points, int columns);

/// Highest and lowest value at the left, first and last step below; as many lines as asked for.
std::vector<std::string> draw_chart(std::span<const ChartPoint> points,
                                    std::span<const ChartMark> marks, const ChartSize& size);

/// One line of eight levels, as many characters as values; all equal gives the lowest level.
std::string draw_levels(std::span<const double> values);

}  // namespace fusedbun::launcher

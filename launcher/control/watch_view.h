#pragma once
// WatchView: what is known of a running job at one moment, and how `fusedbun watch` shows it. Pure.
//
// Thread safety: a value.
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/control/v1/control.pb.h"
#include "fusedbun/launcher/control/loss_chart.h"
#include "fusedbun/launcher/control/terminal.h"

namespace fusedbun::launcher {

struct WatchView {
  std::string where;  ///< run folder or address
  std::optional<control::v1::Job> job;
  std::vector<control::v1::Rank> ranks;
  std::vector<control::v1::Change> changes;
  std::optional<control::v1::MetricsSample> last;
  std::vector<ChartPoint> losses;
  std::vector<ChartPoint> learning_rates;  ///< of the first group
  std::string trouble;                     ///< why nothing more is heard; empty: it is

  /// Takes a sample in. The past is thinned so that it never grows beyond some thousand points.
  void add(const control::v1::MetricsSample& sample);
};

/// The whole screen: state, numbers, curves with changes marked, the newest changes, the ranks. Made to fit `size`.
std::vector<std::string> render(const WatchView& view, const TerminalSize& size);

/// One line of numbers: "step 121 of 300  loss 2.3456  lr 0.0003  13.2 k tokens/s".
std::string line_of(const control::v1::MetricsSample& sample, int64_t total_steps);

}  // namespace fusedbun::launcher

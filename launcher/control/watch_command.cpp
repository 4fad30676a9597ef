#include "fusedbun/launcher/control/watch_command.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"
#include "fusedbun/launcher/control/live_job.h"
#include "fusedbun/launcher/control/watch_lines.h"

namespace fusedbun::launcher {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kFrame = 200ms;
constexpr auto kRefresh = 500ms;
/// A job that stands still sends none.
constexpr auto kSamplesWithin = 2s;
constexpr TerminalSize kSnapshotSize{.columns = 100, .lines = 30};
constexpr int kSideMax = 1000;

void print(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) std::cout << line << '\n';
}

/// The last frame stays on the terminal when the screen goes.
void watch_on_screen(const control::JobLocation& location) {
  LiveJob job(location);
  std::vector<std::string> last;
  {
    Terminal terminal;
    bool ended = false;
    for (Clock::time_point next_refresh{};;) {
      if (Clock::now() >= next_refresh && !ended) {
        ended = job.has_ended();  // asked before, so that the last state is shown
        job.refresh();
        next_refresh = Clock::now() + kRefresh;
      }
      last = render(job.view(), terminal.size());
      terminal.show(last);
      const char key = terminal.key(kFrame);
      if (key == 'q' || key == 'Q' || ended) break;
    }
  }
  last.pop_back();  // the line about keys
  print(last);
  if (const std::string trouble = job.view().trouble; !trouble.empty())
    std::cout << shown(trouble) << '\n';
}

/// $COLUMNS and $LINES, as a shell knows them.
int side_from(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  const int value = text != nullptr ? std::atoi(text) : 0;
  return value > 0 && value <= kSideMax ? value : otherwise;
}

/// One frame, of the samples that the job has kept.
void snapshot(const control::JobLocation& location) {
  LiveJob job(location);
  job.refresh();
  const auto deadline = Clock::now() + kSamplesWithin;
  while (!job.is_up_to_date() && !job.has_ended() && Clock::now() < deadline) {
    std::this_thread::sleep_for(20ms);
  }
  const TerminalSize size{.columns = side_from("COLUMNS", kSnapshotSize.columns),
                          .lines = side_from("LINES", kSnapshotSize.lines)};
  std::vector<std::string> lines = render(job.view(), size);
  lines.pop_back();
  print(lines);
}

}  // namespace

CLI::App* add_watch_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "watch", "Show a running job live: loss curve, changes, learning rate, speed, ranks");
  command->footer(
      "Examples:\n"
      "  fusedbun watch --run-dir runs/first                  # a screen; q quits\n"
      "  fusedbun watch --run-dir runs/first | tee log        # no terminal: lines\n"
      "  fusedbun watch --run-dir runs/first --output json | jq "
      "'select(.sample).sample.values.loss'\n\n"
      "On the screen ▲ marks the steps at which changes took effect, with their revisions; the "
      "line "
      "above the\ncurve is the learning rate. Watching costs training nothing: who reads slowly "
      "loses "
      "samples.");
  auto once = std::make_shared<bool>(false);
  command->add_flag("--snapshot", *once,
                    "Print one screen of $COLUMNS x $LINES (else 100 x 30) and leave");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, format, once] {
    if (*once) {
      snapshot(*location);
    } else if (*format == OutputFormat::text && Terminal::is_there()) {
      watch_on_screen(*location);
    } else {
      watch_as_lines(*location, *format);
    }
  });
  return command;
}

}  // namespace fusedbun::launcher

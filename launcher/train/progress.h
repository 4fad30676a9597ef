#pragma once
// What a run tells a person: sentences, and where training stands. On a terminal one line that is rewritten at most
// each 0.1 s; otherwise plain lines, or log records, at most each 10 s. All but the rewritten line also goes to the run's log file. No
// colours, so NO_COLOR has nothing to switch off.
//
// Invariants: 1. A sentence never lands in the middle of the rewritten line. 2. Ranks other than 0 are silent: they
// hold an object without a screen. 3. A screen that takes nothing costs lines, which are counted there when it takes some again;
// the log has them.
//
// Thread safety: say() may be called from any thread; step() from one.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fusedbun/dist/run_folder/line_file.h"
#include "fusedbun/launcher/cli/log_record.h"

namespace fusedbun::train {

struct StepLine {
  int64_t job_step = 0;  ///< from 0, just done
  int64_t total_steps = 0;
  double loss = 0;
  double tokens_per_second = 0;
  double seconds_left = 0;
  std::optional<double> loss_scale = {};  ///< where it is dynamic
};
/// "step 120/300  loss 2.3456  scale 65536  13.2 k tokens/s  1:23 left"; without a dynamic loss scale nothing of it
std::string format(const StepLine& line);

class Progress {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Style : uint8_t {
    rewritten,
    plain,
    json,  ///< plain, each line a log record
  };

  /// Shows a text; false if nobody took it.
  using Screen = std::function<bool(std::string_view text)>;

  /// `screen` may be null (silent).
  Progress(Screen screen, Style style) : screen_(std::move(screen)), style_(style) {}
  ~Progress();
  Progress(const Progress&) = delete;  // one line of one screen

  /// From now on sentences and plain lines are appended to `log`, as long as it takes them.
  void write_to(const std::filesystem::path& log);

  void say(std::string_view sentence);
  /// Shown only if the last one is long enough ago, or it is the last step.
  void step(const StepLine& line, Clock::time_point now);

 private:
  void put(std::string_view line, const std::vector<launcher::LogField>& fields = {});
  void show(std::string_view line, const std::vector<launcher::LogField>& fields = {});

  std::mutex mutex_;
  Screen screen_;
  Style style_;
  std::unique_ptr<run_folder::LineFile> log_;
  std::optional<Clock::time_point> last_shown_;
  bool line_open_ = false;
  int64_t not_shown_ = 0;  ///< lines since one was
};

/// How standard error wants it: rewritten on a terminal that can, plain otherwise.
Progress::Style style_of_stderr();

}  // namespace fusedbun::train

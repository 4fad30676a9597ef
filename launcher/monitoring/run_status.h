#pragma once
// RunStatus: what rank 0 knows of a run at one moment, as monitoring systems ask for it.
//
// Thread safety: values.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/launcher/monitoring/run_observer.h"

namespace fusedbun::monitoring {

/// How many durations were at most so long.
struct DurationHistogram {
  static constexpr std::array<double, 17> kBoundsSeconds = {
      0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250};

  void add(double seconds);

  std::array<uint64_t, kBoundsSeconds.size() + 1> counts = {};  ///< [bound], the last: longer
  double sum_seconds = 0;
};

/// What does not change while an attempt runs.
struct RunFacts {
  std::string run_dir;
  int64_t attempt = 1;
  int world_size = 1;
  int64_t total_steps = 0;
  bool keeps_checkpoints = true;
};

struct SavedState {
  int64_t job_step = 0;
  int64_t bytes = 0;
  double seconds = 0;
  double unix_time = 0;
};

struct ValidationResult {
  int64_t step = 0;
  double loss = 0;
};

/// This process, by the names that every Prometheus client has (process_*).
struct ProcessUse {
  double start_unix_time = 0;
  double cpu_seconds = 0;
  int64_t resident_bytes = 0;
  int64_t open_descriptors = 0;
};
/// From /proc; zeros where it does not tell.
ProcessUse process_use();

struct RunStatus {
  run_folder::NamedTexts versions;  ///< of the program and its libraries
  std::optional<RunFacts> facts;    ///< none: it is starting
  std::optional<StepMetrics> last_step;
  double last_step_unix_time = 0;
  int64_t steps = 0;   ///< of this process
  int64_t tokens = 0;  ///< of this process
  DurationHistogram step_durations;
  std::optional<ValidationResult> last_validation;
  std::optional<SavedState> last_checkpoint;  ///< of this process
  int64_t checkpoints = 0;
  std::vector<plan::RankStatus> ranks;  ///< empty: there are no heartbeats
  ProcessUse process;
};

}  // namespace fusedbun::monitoring

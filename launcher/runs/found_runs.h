#pragma once
// The runs of a folder tree: every folder with a run.json, live or ended, by what its files say.
//
// Thread safety: functions without state.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/run_folder/run_record.h"

namespace fusedbun::launcher {

struct FoundRun {
  std::filesystem::path folder;
  run_folder::Attempt attempt;  ///< the newest
  int attempts = 1;
  /// "SUCCEEDED" and so on; of one that says RUNNING: "KILLED" where its process is surely gone, "RUNNING" where it is seen to live,
  /// else "RUNNING?", on another host or in another container.
  std::string state;
  int64_t steps = 0;  ///< done; of a live run as metrics.jsonl has it
  std::optional<double> loss = {}, validation_loss = {};  ///< the newest
  int64_t seconds_since = 0;  ///< its end, or the newest line of a live run
};

struct RunsFound {
  std::vector<FoundRun> runs;         ///< live ones first, then by time, the newest first
  std::vector<std::string> problems;  ///< a sentence per record that cannot be read
};

/// Looks through `folders` and what is below them, but not into links nor into run folders. Throws DataError (65) for a folder that is none.
RunsFound find_runs(const std::vector<std::filesystem::path>& folders);

}  // namespace fusedbun::launcher

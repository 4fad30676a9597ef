#pragma once
// The names of all files in a run folder; README.md of this folder says what each is.
//
// Thread safety: constants.
#include <string>

namespace fusedbun::run_folder {

inline constexpr const char* kLockName = "run.lock";
inline constexpr const char* kRecordName = "run.json";
inline constexpr const char* kMetricsName = "metrics.jsonl";
/// TensorBoard reads the files whose names begin so.
inline constexpr const char* kEventsPrefix = "events.out.tfevents.";
inline constexpr const char* kLogName = "train.log";
inline constexpr const char* kPlanName = "plan.txt";
inline constexpr const char* kModelName = "model.safetensors";
inline constexpr const char* kBestModelName = "best.safetensors";
inline constexpr const char* kCheckpointsName = "checkpoints";
inline constexpr const char* kSaveToName = "save_to";
inline constexpr const char* kErrorName = "error.json";
inline constexpr const char* kControlName = "control.json";
inline constexpr const char* kSocketName = "control.sock";
inline constexpr const char* kChangesName = "changes.log";
/// A folder in it for each time that somebody asked.
inline constexpr const char* kDiagnosticsName = "diagnostics";
inline std::string diagnostics_name(int rank) {
  return "rank-" + std::to_string(rank) + ".txt";
}

}  // namespace fusedbun::run_folder

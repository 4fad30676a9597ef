#pragma once
// A file of changes (TOML), so that a run with live changes can be repeated exactly, or planned before it starts:
//
//   [[changes]]
//   at_step = 40            # the first job step that uses it, from 0
//   lr = 1e-4               # any hyperparameter that may change, by the optimizer's name or the contract's
//   group = "all"           # or a group's name; "all" if it is left out
//   reason = "as in run 12" # optional
//
//   [[changes]]
//   at_step = 90
//   patches = [{group = "body", Lambda = 0.1}, {group = "head", lr = 1e-4}]   # several groups in one change
//
// Needs no gRPC. Thread safety: functions without state.
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/changes/change_schedule.h"

namespace fusedbun::changes {

/// `name` stands in complaints. Throws UsageError (64) for text that is not TOML, ConfigError (78) for names, types and values
/// that cannot be, both with file and line. Which groups there are, and whether values fit together, the ledger knows.
std::vector<ScheduledChange> parse_changes(std::string_view text, const std::string& name);
/// Throws DataError (65) if the file cannot be read.
std::vector<ScheduledChange> read_changes_file(const std::filesystem::path& path);

/// One change of such a file. The group of a patch is "*" for all.
struct ChangeToWrite {
  int64_t at_step = 0;
  std::string reason;
  std::vector<ValuePatch> patches;
};
/// The text of a file that parse_changes() reads back to the same changes, bit for bit.
std::string changes_as_toml(const std::vector<ChangeToWrite>& changes);

}  // namespace fusedbun::changes

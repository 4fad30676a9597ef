#pragma once
// error.json in the run folder: why the job ended, told by the first rank that knew. For programs that read it when
// the processes have gone:
//   {"format":"fusedbun.error","version":1,"rank":2,"host":"node3","pid":4711,"phase":"update","bucket":1,"step":41,
//    "cause":"gone","exit_code":null,"time":"2026-11-22T08:00:00Z","sentence":"rank 2 (pid 4711 on node3) ..."}
// `cause` is gone, silent, failed (then exit_code is the rank's) or hung (then rank, host, pid, phase and step are null: the
// sentence says where each rank is); bucket is null where the phase is about none.
//
// Thread safety: functions without state; any number of ranks may write at the same time, and the first wins.
#include <filesystem>

#include "fusedbun/dist/plan/rank_watch.h"

namespace fusedbun::run_folder {

/// Appears whole or not at all; keeps what an earlier writer wrote. Never throws: there is a greater trouble to tell
/// of.
void write_error_file(const std::filesystem::path& run_dir, const plan::LostRank& lost) noexcept;
/// Call at the start of each attempt, so that a later error.json belongs to it: the earlier one becomes error-1.json, the next
/// error-2.json.
void keep_earlier_error_file(const std::filesystem::path& run_dir) noexcept;
/// Removes all of them.
void remove_error_files(const std::filesystem::path& run_dir) noexcept;

}  // namespace fusedbun::run_folder

#pragma once
// A run that no control plane answers for any more: what its run folder says of it.
//
// Thread safety: functions without state.
#include <functional>
#include <optional>
#include <string>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/run_folder/run_record.h"

namespace fusedbun::launcher {

/// The run folder's newest attempt, if it has ended; one that was killed, so that its record says RUNNING, is FAILED here.
std::optional<run_folder::Attempt> newest_ended(const control::JobLocation& location);

/// How it ended, where and as the contract says it of a job that still answers.
struct FinalState {
  control::v1::Job::State state;
  std::string reason;
};
FinalState final_state(const run_folder::Attempt& attempt);

/// Calls `live`. If no job answers, and newest_ended() knows how it went, calls `ended` with that instead. Otherwise the
/// UnavailableError of `live` passes through.
void ask_job_or_record(const control::JobLocation& location, const std::function<void()>& live,
                       const std::function<void(const run_folder::Attempt&)>& ended);

}  // namespace fusedbun::launcher

#pragma once
// A run that no control plane answers for any more: what its run folder says of it.
//
// Thread safety: functions without state.
#include <functional>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/run_folder/run_record.h"

namespace fusedbun::launcher {

/// Calls `live`. If no job answers, and the run folder's newest attempt has ended, calls `ended` with that instead; one that
/// was killed, so that its record says RUNNING, is FAILED there. Otherwise the UnavailableError of `live` passes through.
void ask_job_or_record(const control::JobLocation& location, const std::function<void()>& live,
                       const std::function<void(const run_folder::Attempt&)>& ended);

}  // namespace fusedbun::launcher

#pragma once
// Names of resources: "jobs/{job}", "jobs/{job}/hyperparameters", "jobs/{job}/changes/{revision}",
// "jobs/{job}/checkpoints/{step}". A server has one job, so
// "jobs/-" names it too.
//
// Thread safety: functions without state.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "fusedbun/dist/changes/change_request.h"

namespace fusedbun::control {

/// "jobs/" and the run's id, with every character outside [A-Za-z0-9._-] as '-'.
std::string job_name(std::string_view run_id);

/// What follows the job in `name` ("" or "changes/3"), or NOT_FOUND UNKNOWN_JOB. `job` is what job_name() gave.
std::variant<std::string_view, changes::Refusal> strip_job_prefix(std::string_view name,
                                                                  std::string_view job);

/// The revision in "changes/{revision}", or NOT_FOUND UNKNOWN_CHANGE if that is not within [1, newest].
std::variant<int64_t, changes::Refusal> change_revision(std::string_view within, int64_t newest);

/// The step in "checkpoints/{step}"; nothing for any other text.
std::optional<int64_t> checkpoint_step(std::string_view within);
/// NOT_FOUND UNKNOWN_CHECKPOINT.
changes::Refusal unknown_checkpoint(std::string_view within);

}  // namespace fusedbun::control

#pragma once
// Standard error of a job, which must never hold the job up: whoever reads it may have stopped (a pipe to a pager, a terminal held
// with Ctrl-S, mpirun once it has been told to end).
//
// Thread safety: any thread.
#include <string_view>

namespace fusedbun::run_folder {

/// Writes `text` to standard error and returns true; or, if it is not taken within a second, false, and some of it may be missing.
/// After that, later calls do not wait until something is taken again. What cannot be written at all (nobody has it open any more,
/// a full disk) counts as written.
bool write_to_standard_error(std::string_view text) noexcept;

}  // namespace fusedbun::run_folder

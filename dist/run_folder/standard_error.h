#pragma once
// Writes to standard error that never block a job. Its reader may have stopped reading: a pager, a terminal after Ctrl-S, mpirun
// after SIGTERM.
//
// Thread safety: any thread, and signal handlers: system calls only.
#include <string_view>

namespace fusedbun::run_folder {

/// Writes `text` and returns true. Returns false if the reader does not take all of it within a second; a part may then have been
/// written. Later calls do not wait, until one succeeds again. An error (a closed pipe, a full disk) counts as written.
bool write_to_standard_error(std::string_view text) noexcept;

}  // namespace fusedbun::run_folder

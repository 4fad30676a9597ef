#pragma once
// The changes of a run that has ended, as clients know them.
//
// Thread safety: a function without state.
#include <cstdint>
#include <filesystem>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::control {

/// The changes in changes.log of a run that ended after `steps` steps: each is APPLIED, CANCELLED or REJECTED. Without previous
/// and resulting values. Throws IoError (74), DataError (65).
v1::ListChangesResponse logged_changes(const std::filesystem::path& run_dir, int64_t steps);

}  // namespace fusedbun::control

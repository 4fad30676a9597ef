#pragma once
// The ranks of a job as lines of a table, for `ranks` and `watch`.
//
// Thread safety: functions without state.
#include <span>
#include <string>
#include <vector>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::launcher {

/// A heading and one line per rank.
std::vector<std::string> rank_table(std::span<const control::v1::Rank> ranks);

}  // namespace fusedbun::launcher

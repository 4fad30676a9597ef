#pragma once
// A change of the contract in words: for the answer of `set` and `cancel`, for `history` and `watch`.
//
// Thread safety: functions without state.
#include <string>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::launcher {

/// What happened or would happen, and every value that it moves; several lines.
std::string describe(const control::v1::Change& change);

/// What was asked for, as `set` takes it: "lr=0.0003 Lambda=0.1 (head)"; "cancels 3".
std::string what(const control::v1::Change& change);

}  // namespace fusedbun::launcher

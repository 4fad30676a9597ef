#pragma once
// Assignments: the words of `fusedbun set`, NAME=VALUE, as a change of the contract. Names are the optimizer's (lr, Lambda) or
// the contract's (learning_rate, weight_decay), or those of `fusedbun train`'s flags (clip,
// weight-decay); lr=schedule hands the learning rate back to the schedule.
//
// Thread safety: functions without state.
#include <span>
#include <string>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::launcher {

/// One patch of `group` ("all" and "*" mean all). Whether the values are allowed is for the job to say. Throws UsageError (64)
/// for a word that is no assignment, an unknown name (with the nearest one), a name given twice, and text that is no number.
control::v1::GroupPatch read_assignments(std::span<const std::string> words,
                                         const std::string& group);

/// All names with range and meaning, for the help.
std::string assignable_names();

}  // namespace fusedbun::launcher

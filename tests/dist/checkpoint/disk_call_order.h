#pragma once
// Judges the recorded order of the calls of a save: could a power cut between any two of them leave a checkpoint that is not
// whole under the name of one that is?
//
// Thread safety: a function without state.
#include <span>
#include <string>
#include <vector>

#include "fusedbun/tests/support/faulty_calls.h"

namespace fusedbun::checkpoint {

/// A sentence for each rule that is broken. Files and folders that were there before are durable.
std::vector<std::string> order_violations(std::span<const support::DiskCallRecord> records,
                                          const std::string& root, const std::string& step_name);

}  // namespace fusedbun::checkpoint

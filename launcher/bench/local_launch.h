#pragma once
// A measurement over ranks, started by one process: it launches this same binary, so that a person types one command.
//
// Thread safety: one at a time.
#include <string>
#include <vector>

#include "fusedbun/launcher/bench/report.h"

namespace fusedbun::bench {

/// Runs `words` ("bench", "train", ...) on `ranks` ranks of this host and returns the report that rank 0 wrote. Throws
/// Error with the ranks' exit code; what they say goes to stderr.
Json run_on_own_ranks(int ranks, const std::vector<std::string>& words);

}  // namespace fusedbun::bench

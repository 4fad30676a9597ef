#pragma once
// `fusedbun health`: does a job live, take changes, and make progress? For people and for probes.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_health_command(CLI::App& app);

}  // namespace fusedbun::launcher

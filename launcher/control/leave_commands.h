#pragma once
// `fusedbun drain` and `fusedbun stop`: a running job leaves at a step boundary, to be run again (75) or for good (0); by force, or after a
// deadline, wherever it is.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Their callbacks throw Error for whatever goes wrong.
CLI::App* add_drain_command(CLI::App& app);
CLI::App* add_stop_command(CLI::App& app);

}  // namespace fusedbun::launcher

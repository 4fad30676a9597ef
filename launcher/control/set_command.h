#pragma once
// `fusedbun set`: changes hyperparameters of a running job, on all ranks from one step on. `fusedbun unpin` is one
// such change.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Their callbacks throw Error for whatever goes wrong.
CLI::App* add_set_command(CLI::App& app);
CLI::App* add_unpin_command(CLI::App& app);

}  // namespace fusedbun::launcher

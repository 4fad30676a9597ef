#pragma once
// `fusedbun set`: changes hyperparameters of a running job, on all ranks from one step on.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_set_command(CLI::App& app);

}  // namespace fusedbun::launcher

#pragma once
// `fusedbun status`: what a running job does, and the hyperparameters that hold; how one that has ended did.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_status_command(CLI::App& app);

}  // namespace fusedbun::launcher

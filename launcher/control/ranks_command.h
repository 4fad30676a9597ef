#pragma once
// `fusedbun ranks`: what each rank of a running job does.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_ranks_command(CLI::App& app);

}  // namespace fusedbun::launcher

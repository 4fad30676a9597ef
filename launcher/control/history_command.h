#pragma once
// `fusedbun history`: the changes of a running job, who made them and why.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_history_command(CLI::App& app);

}  // namespace fusedbun::launcher

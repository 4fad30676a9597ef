#pragma once
// `fusedbun dump`: every rank of a running job writes what it is doing into the run folder.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_dump_command(CLI::App& app);

}  // namespace fusedbun::launcher

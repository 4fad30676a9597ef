#pragma once
// `fusedbun watch`: a running job on a full screen, as lines, or as JSON lines.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_watch_command(CLI::App& app);

}  // namespace fusedbun::launcher

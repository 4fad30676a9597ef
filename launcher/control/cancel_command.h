#pragma once
// `fusedbun cancel`: takes a scheduled change back.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callback throws Error for whatever goes wrong.
CLI::App* add_cancel_command(CLI::App& app);

}  // namespace fusedbun::launcher

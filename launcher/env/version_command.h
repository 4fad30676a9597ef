#pragma once
// `fusedbun version` and `fusedbun --version`.
//
// Thread safety: none; set up once by main.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Adds the command to `app`, and the flag --version.
CLI::App* add_version_command(CLI::App& app);

}  // namespace fusedbun::launcher

#pragma once
// `fusedbun launch`: starts one program on several ranks of this host, with torchrun's environment and flag names.
//
// Thread safety: none; set up once by main.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Adds the command. Its callback throws Error with the failing rank's exit code. A program whose first word is another
/// subcommand of `app` is run by this same binary.
CLI::App* add_launch_command(CLI::App& app);

}  // namespace fusedbun::launcher

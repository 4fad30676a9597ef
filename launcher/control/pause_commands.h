#pragma once
// `fusedbun pause` and `fusedbun resume`: all ranks of a running job are held between two steps, and go on.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Their callbacks throw Error for whatever goes wrong.
CLI::App* add_pause_command(CLI::App& app);
CLI::App* add_resume_command(CLI::App& app);

}  // namespace fusedbun::launcher

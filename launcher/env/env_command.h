#pragma once
// `fusedbun env`: who this process is and who said so, which backend a job started this way would take, and what the
// host offers. It connects to nobody.
//
// Thread safety: none; set up once by main.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

CLI::App* add_env_command(CLI::App& app);

}  // namespace fusedbun::launcher

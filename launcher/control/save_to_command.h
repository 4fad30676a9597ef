#pragma once
// `fusedbun save-to PATH`: another place for a running job's model.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

CLI::App* add_save_to_command(CLI::App& app);

}  // namespace fusedbun::launcher

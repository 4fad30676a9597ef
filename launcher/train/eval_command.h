#pragma once
// `fusedbun eval`: how well a model predicts given files.
//
// Thread safety: as the command line's.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

CLI::App* add_eval_command(CLI::App& app);

}  // namespace fusedbun::launcher

#pragma once
// `fusedbun train`: the command line of the trainer. No LibTorch.
//
// Thread safety: none; used by main.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Adds the command. Its callback trains, and throws Error for everything that does not end well.
CLI::App* add_train_command(CLI::App& app);

}  // namespace fusedbun::launcher

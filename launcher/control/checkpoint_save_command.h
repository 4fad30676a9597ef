#pragma once
// fusedbun checkpoint save: has a running job save a checkpoint now.
//
// Thread safety: none.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// `group` is the command `checkpoint`.
CLI::App* add_checkpoint_save_command(CLI::App& group);

}  // namespace fusedbun::launcher

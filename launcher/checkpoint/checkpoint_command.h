#pragma once
// `fusedbun checkpoint list|show|verify|export|reshard`: a run's checkpoints, with or without a job.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callbacks throw Error for whatever goes wrong.
CLI::App* add_checkpoint_command(CLI::App& app);

}  // namespace fusedbun::launcher

// The `fusedbun` command: those of its commands that need LibTorch are handed to fusedbun-torch, the others are here.
#include "fusedbun/launcher/checkpoint/checkpoint_command.h"
#include "fusedbun/launcher/cli/program.h"
#include "fusedbun/launcher/data/data_command.h"
#include "fusedbun/launcher/env/version_command.h"
#include "fusedbun/launcher/launch/launch_command.h"
#include "fusedbun/launcher/runs/runs_command.h"
#ifdef FUSEDBUN_HAS_TORCH
#include "fusedbun/launcher/cli/torch_program.h"
#endif
#ifdef FUSEDBUN_HAS_CONTROL
#include "fusedbun/launcher/control/cancel_command.h"
#include "fusedbun/launcher/control/checkpoint_save_command.h"
#include "fusedbun/launcher/control/dump_command.h"
#include "fusedbun/launcher/control/health_command.h"
#include "fusedbun/launcher/control/history_command.h"
#include "fusedbun/launcher/control/leave_commands.h"
#include "fusedbun/launcher/control/pause_commands.h"
#include "fusedbun/launcher/control/ranks_command.h"
#include "fusedbun/launcher/control/save_to_command.h"
#include "fusedbun/launcher/control/set_command.h"
#include "fusedbun/launcher/control/status_command.h"
#include "fusedbun/launcher/control/watch_command.h"
#endif

namespace fusedbun::launcher {
namespace {

void add_commands(CLI::App& app) {
  app.footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 100 --run-dir runs/first\n"
      "  mpirun -np 4 fusedbun train --data corpus/ --run-dir runs/second\n");
  add_launch_command(app);
#ifdef FUSEDBUN_HAS_TORCH
  add_torch_command(app, kTrain);
  add_torch_command(app, kGenerate);
  add_torch_command(app, kEval);
#endif
  add_data_command(app);
  CLI::App* const checkpoint = add_checkpoint_command(app);
  add_runs_command(app);
#ifdef FUSEDBUN_HAS_CONTROL
  add_checkpoint_save_command(*checkpoint);
  add_status_command(app);
  add_watch_command(app);
  add_ranks_command(app);
  add_set_command(app);
  add_unpin_command(app);
  add_cancel_command(app);
  add_history_command(app);
  add_pause_command(app);
  add_resume_command(app);
  add_drain_command(app);
  add_stop_command(app);
  add_save_to_command(app);
  add_health_command(app);
  add_dump_command(app);
#else
  static_cast<void>(checkpoint);
#endif
#ifdef FUSEDBUN_HAS_TORCH
  add_torch_command(app, kBench);
  add_torch_command(app, kEnv);
#endif
  add_version_command(app);
}

}  // namespace
}  // namespace fusedbun::launcher

int main(int argc, char** argv) {
  return fusedbun::launcher::run_program(argc, argv, [&](CLI::App& app) {
#ifdef FUSEDBUN_HAS_TORCH
    fusedbun::launcher::become_torch_program(argc, argv);
#endif
    fusedbun::launcher::add_commands(app);
  });
}

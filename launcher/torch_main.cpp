// `fusedbun-torch`: the commands that need LibTorch. `fusedbun` becomes this program when one of them is asked for.
#include "fusedbun/launcher/bench/bench_command.h"
#include "fusedbun/launcher/cli/program.h"
#include "fusedbun/launcher/env/env_command.h"
#include "fusedbun/launcher/generate/generate_command.h"
#include "fusedbun/launcher/train/eval_command.h"
#include "fusedbun/launcher/train/train_command.h"

int main(int argc, char** argv) {
  return fusedbun::launcher::run_program(argc, argv, [](CLI::App& app) {
    fusedbun::launcher::add_train_command(app);
    fusedbun::launcher::add_generate_command(app);
    fusedbun::launcher::add_eval_command(app);
    fusedbun::launcher::add_bench_command(app);
    fusedbun::launcher::add_env_command(app);
  });
}

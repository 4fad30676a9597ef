// The `fusedbun` command: finds the subcommand, and turns every way to fail into one line and an exit code.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <iostream>
#include <new>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/checkpoint/checkpoint_command.h"
#include "fusedbun/launcher/cli/log_record.h"
#include "fusedbun/launcher/cli/standard_streams.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/cli/usage.h"
#include "fusedbun/launcher/data/data_command.h"
#include "fusedbun/launcher/env/version_command.h"
#include "fusedbun/launcher/launch/launch_command.h"
#include "fusedbun/launcher/runs/runs_command.h"
#ifdef FUSEDBUN_HAS_TORCH
#include "fusedbun/launcher/bench/bench_command.h"
#include "fusedbun/launcher/env/env_command.h"
#include "fusedbun/launcher/generate/generate_command.h"
#include "fusedbun/launcher/train/eval_command.h"
#include "fusedbun/launcher/train/train_command.h"
#endif
#ifdef FUSEDBUN_HAS_CONTROL
#include "fusedbun/launcher/control/cancel_command.h"
#include "fusedbun/launcher/control/checkpoint_save_command.h"
#include "fusedbun/launcher/control/health_command.h"
#include "fusedbun/launcher/control/history_command.h"
#include "fusedbun/launcher/control/leave_commands.h"
#include "fusedbun/launcher/control/ranks_command.h"
#include "fusedbun/launcher/control/save_to_command.h"
#include "fusedbun/launcher/control/set_command.h"
#include "fusedbun/launcher/control/status_command.h"
#include "fusedbun/launcher/control/watch_command.h"
#endif

namespace fusedbun::launcher {
namespace {

/// A broken invariant aborts after it has printed its sentence; launchers know that by code 70, not by SIGABRT. Where core dumps are
/// wanted (ulimit -c) a copy of the process leaves one.
void leave_as_our_bug(int) {
  rlimit core{};
  if (::getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur > 0) {
    const pid_t copy = ::fork();
    if (copy == 0) {
      std::signal(SIGABRT, SIG_DFL);
      sigset_t abort;
      ::sigemptyset(&abort);
      ::sigaddset(&abort, SIGABRT);
      ::sigprocmask(SIG_UNBLOCK, &abort, nullptr);
      ::raise(SIGABRT);
    }
    if (copy > 0) ::waitpid(copy, nullptr, 0);
  }
  ::_exit(static_cast<int>(ExitCode::internal));
}

void add_commands(CLI::App& app) {
  app.name("fusedbun");
  app.formatter(examples_first_formatter());
  app.option_defaults()->always_capture_default();
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 100 --run-dir runs/first\n"
      "  mpirun -np 4 fusedbun train --data corpus/ --run-dir runs/second\n");
  add_launch_command(app);
#ifdef FUSEDBUN_HAS_TORCH
  add_train_command(app);
  add_generate_command(app);
  add_eval_command(app);
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
  add_drain_command(app);
  add_stop_command(app);
  add_save_to_command(app);
  add_health_command(app);
#else
  static_cast<void>(checkpoint);
#endif
#ifdef FUSEDBUN_HAS_TORCH
  add_bench_command(app);
  add_env_command(app);
#endif
  add_version_command(app);
}

int fail(ExitCode code, const std::string& sentence) {
  std::cout.flush();
  run_folder::write_to_standard_error(
      error_line(shown(sentence), {{"exit_code", int64_t{static_cast<int>(code)}}}));
  return static_cast<int>(code);
}

int run(int argc, const char* const* argv) {
  CLI::App app("Sharded data-parallel training with the Fusedbun optimizer");
  add_commands(app);
  try {
    std::vector<std::string> words = with_program_marked(app, words_of(argc, argv));
    std::ranges::reverse(words);  // as CLI11 wants them
    app.parse(std::move(words));
    return static_cast<int>(ExitCode::done);
  } catch (const CLI::Success& asked_for_text) {
    return app.exit(asked_for_text);
  } catch (const CLI::ParseError& error) {
    return fail(ExitCode::usage, usage_sentence(app, error));
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ExitCode::device, "out of memory");
  } catch (const std::exception& error) {
    const std::string text =
        error.what();  // of LibTorch's errors the first line; the rest is a stack
    return fail(ExitCode::unclassified, text.substr(0, text.find('\n')));
  }
}

}  // namespace
}  // namespace fusedbun::launcher

int main(int argc, char** argv) {
  fusedbun::launcher::open_standard_streams();
  std::signal(SIGABRT, fusedbun::launcher::leave_as_our_bug);
  return fusedbun::launcher::run(argc, argv);
}

#include "fusedbun/launcher/launch/launch_command.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/launch/free_port.h"
#include "fusedbun/launcher/launch/process_loop.h"

namespace fusedbun::launcher {
namespace {

constexpr int kRanksMax = 1024;
/// What another program gets to leave in, seconds; torchrun's.
constexpr double kGraceOfOthers = 30;
/// Seconds. What fails at once must not start again at once.
constexpr double kRestartDelayMin = 0.1;
constexpr double kRestartDelayMax = 3600;
/// A pipe and a log file for each of its two streams.
constexpr int64_t kDescriptorsPerRank = 4;

struct Flags {
  launch::LaunchOptions options;
  std::string redirects = "0";
  std::string tee = "0";
  int nodes = 1;
  bool standalone = false;
  bool dry_run = false;
};

void check(const Flags& flags) {
  const launch::LaunchOptions& options = flags.options;
  FUSEDBUN_REQUIRE(options.ranks >= 1 && options.ranks <= kRanksMax, ConfigError,
                   "--nproc-per-node = " + std::to_string(options.ranks) + ": must be 1 to " +
                       std::to_string(kRanksMax));
  FUSEDBUN_REQUIRE(flags.nodes == 1, ConfigError,
                   "--nnodes = " + std::to_string(flags.nodes) +
                       ": launch starts ranks on this host only; use mpirun, torchrun or srun "
                       "with 'fusedbun train' for several");
  FUSEDBUN_REQUIRE(options.master_port >= 0 && options.master_port <= 65535, ConfigError,
                   "--master-port = " + std::to_string(options.master_port) +
                       ": must be 1 to 65535, or 0 for a free one");
  const double grace = options.grace_seconds.value_or(0);
  FUSEDBUN_REQUIRE(grace >= 0 && grace <= 86400, ConfigError,
                   "--grace = " + std::to_string(grace) + ": must be 0 to 86400 seconds");
  FUSEDBUN_REQUIRE(
      options.max_restarts >= 0, ConfigError,
      "--max-restarts = " + std::to_string(options.max_restarts) + ": must not be negative");
  FUSEDBUN_REQUIRE(options.restart_delay_seconds >= kRestartDelayMin &&
                       options.restart_delay_seconds <= kRestartDelayMax,
                   ConfigError,
                   "--restart-delay = " + std::to_string(options.restart_delay_seconds) +
                       ": must be 0.1 to 3600 seconds");
  FUSEDBUN_REQUIRE(!options.command.empty(), UsageError,
                   "nothing to launch: put -- and a program after the flags, as in "
                   "'fusedbun launch -n 2 -- train'");
}

void set_streams(Flags& flags) {
  launch::LaunchOptions& options = flags.options;
  options.redirects = launch::parse_streams("--redirects", flags.redirects, options.ranks);
  options.tee = launch::parse_streams("--tee", flags.tee, options.ranks);
  const bool asked = flags.redirects != "0" || flags.tee != "0";
  FUSEDBUN_REQUIRE(!asked || !options.log_dir.empty(), UsageError,
                   "--redirects and --tee need --log-dir, the folder to write to");
  if (!asked && !options.log_dir.empty()) options.tee.assign(options.ranks, launch::kBoth);
}

void print_dry_run(const launch::LaunchOptions& options) {
  launch::AttemptIdentity identity = {.ranks = options.ranks,
                                      .master_port = launch::HeldPort(options.master_port).number(),
                                      .run_id = launch::new_run_id(),
                                      .max_restarts = options.max_restarts,
                                      .cores = usable_cores()};
  if (!options.log_dir.empty()) identity.log_dir = options.log_dir / identity.run_id / "attempt_0";
  for (int rank = 0; rank < options.ranks; ++rank) {
    std::cout << "env";
    for (const auto& [name, value] : launch::rank_environment(identity, rank)) {
      std::cout << ' ' << name << '=' << quoted(value);
    }
    std::cout << ' ' << quoted(options.command) << '\n';
  }
}

void launch_ranks(const CLI::App& app, Flags flags) {
  check(flags);
  set_streams(flags);
  std::vector<std::string>& command = flags.options.command;
  const auto named = [&](const CLI::App* other) { return other->get_name() == command.front(); };
  if (!app.get_subcommands(named).empty()) {
    // They end by themselves: a rank that hangs is found by the others, and one that still saves is not killed.
    command.insert(command.begin(), std::filesystem::read_symlink("/proc/self/exe"));
  } else if (!flags.options.grace_seconds) {
    flags.options.grace_seconds = kGraceOfOthers;
  }
  flags.options.own_words = own_words();
  if (flags.dry_run) return print_dry_run(flags.options);
  raise_descriptor_limit();  // the ranks inherit it
  require_descriptors("-n " + std::to_string(flags.options.ranks),
                      kDescriptorsPerRank * flags.options.ranks, "the ranks' output");
  launch::ProcessLoop(flags.options).run();
}

}  // namespace

CLI::App* add_launch_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  launch::LaunchOptions& options = flags->options;
  CLI::App* const command =
      app.add_subcommand("launch", "Start a program on several ranks of this host");
  command->footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 100 --run-dir runs/first\n"
      "  fusedbun launch -n 4 --max-restarts 10 -- train --data texts/ --run-dir runs/long\n"
      "  fusedbun launch -n 4 --log-dir logs --tee 3 -- python train.py --lr 1e-3");
  command
      ->add_option("program", options.command,
                   "Program and arguments, after --; a fusedbun command runs this binary")
      ->default_str("");
  command->add_option("-n,--nproc-per-node", options.ranks, "Ranks to start")->group("Ranks");
  command->add_option("--master-port", options.master_port, "Rendezvous port, 0: a free one")
      ->group("Ranks");
  command->add_flag("--standalone", flags->standalone, "Accepted for torchrun's sake; always so")
      ->group("Ranks");
  command->add_option("--nnodes", flags->nodes, "Accepted for torchrun's sake; only 1")
      ->group("Ranks");
  command
      ->add_option("--log-dir", options.log_dir,
                   "Write DIR/<run>/attempt_N/<rank>/{stdout,stderr}.log")
      ->group("Output");
  command
      ->add_option("-r,--redirects", flags->redirects,
                   "Log file alone: 1 stdout, 2 stderr, 3 both; by rank: 0:3,1:1")
      ->group("Output");
  command
      ->add_option("-t,--tee", flags->tee,
                   "Log file and console: as --redirects; default 3 with --log-dir")
      ->group("Output");
  command
      ->add_option("--grace", options.grace_seconds,
                   "Seconds from a forwarded SIGTERM or SIGINT to SIGKILL")
      ->default_str("30; no limit for 'train', which leaves when its model is saved")
      ->group("Ending");
  command
      ->add_option(
          "--max-restarts", options.max_restarts,
          "Start all ranks again after a failure that may pass (codes 1, 70, 71, 74, "
          "76, a killed rank), so often at most; 'train' goes on from its newest checkpoint")
      ->group("Ending");
  command
      ->add_option("--restart-delay", options.restart_delay_seconds,
                   "Seconds before the first restart; doubled up to 60 after each further failure, "
                   "anew after 5 minutes without one")
      ->group("Ending");
  command->add_flag("--dry-run", flags->dry_run,
                    "Print each rank's environment and command, start nothing");
  command->callback([flags, &app] { launch_ranks(app, *flags); });
  return command;
}

}  // namespace fusedbun::launcher

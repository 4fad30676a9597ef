#include "fusedbun/launcher/launch/launch_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <iostream>
#include <memory>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/launch/engine.h"
#include "fusedbun/launcher/launch/free_port.h"
#include "fusedbun/launcher/launch/process_loop.h"
#include "fusedbun/launcher/launch/rank_process.h"

extern char** environ;

namespace fusedbun::launcher {
namespace {

/// What another program gets to leave in, seconds; torchrun's.
constexpr double kGraceOfOthers = 30;
/// Seconds. What fails at once must not start again at once.
constexpr double kRestartDelayMin = 0.1;
constexpr double kRestartDelayMax = 3600;
/// A pipe and a log file for each of its two streams.
constexpr int64_t kDescriptorsPerRank = 4;

struct Flags {
  launch::LaunchOptions options;
  launch::EngineRequest request;
  std::string engine = "auto";
  bool dry_run = false;
};

void check(const Flags& flags) {
  const launch::LaunchOptions& options = flags.options;
  const int port = flags.request.master_port.value_or(0);
  FUSEDBUN_REQUIRE(
      port >= 0 && port <= 65535, ConfigError,
      "--master-port = " + std::to_string(port) + ": must be 1 to 65535, or 0 for a free one");
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

/// Ranks of this host alone, or of one of several that were each told the same.
void set_hosts(Flags& flags, const launch::EngineHost& host) {
  launch::LaunchOptions& options = flags.options;
  const launch::EngineRequest& request = flags.request;
  options.ranks = launch::parse_ranks(request.ranks.value_or("1"), host.gpus, host.cores);
  options.nodes = launch::parse_nodes(request.nodes.value_or("1"));
  options.node_rank = request.node_rank.value_or(0);
  options.master_port = request.master_port.value_or(options.nodes > 1 ? launch::kStaticPort : 0);
  FUSEDBUN_REQUIRE(options.node_rank >= 0 && options.node_rank < options.nodes, ConfigError,
                   "--node-rank = " + std::to_string(options.node_rank) + ": must be from 0 to " +
                       std::to_string(options.nodes - 1) + ", below --nnodes");
  if (options.nodes == 1) return;
  FUSEDBUN_REQUIRE(
      request.node_rank && request.master_addr, UsageError,
      "--nnodes " + *request.nodes +
          ": give each host its --node-rank, and all of them the --master-addr of "
          "host 0; or --hosts or --hostfile for mpirun, or --rdzv-endpoint for torchrun");
  FUSEDBUN_REQUIRE(options.master_port > 0, ConfigError,
                   "--master-port 0: the other hosts cannot know which port is free; give one, "
                   "or leave the flag out for " +
                       std::to_string(launch::kStaticPort));
  options.master_addr = *request.master_addr;
  options.run_id = request.rdzv_id.value_or("static");
}

void set_streams(Flags& flags) {
  launch::LaunchOptions& options = flags.options;
  options.redirects = launch::parse_streams("--redirects", flags.request.redirects, options.ranks);
  options.tee = launch::parse_streams("--tee", flags.request.tee, options.ranks);
  const bool asked = flags.request.redirects != "0" || flags.request.tee != "0";
  FUSEDBUN_REQUIRE(!asked || !options.log_dir.empty(), UsageError,
                   "--redirects and --tee need --log-dir, the folder to write to");
  if (!asked && !options.log_dir.empty()) options.tee.assign(options.ranks, launch::kBoth);
}

void print_dry_run(const launch::LaunchOptions& options) {
  const int port =
      options.node_rank == 0 ? launch::HeldPort(options.master_port).number() : options.master_port;
  launch::AttemptIdentity identity = {
      .ranks = options.ranks,
      .nodes = options.nodes,
      .node_rank = options.node_rank,
      .master_addr = options.master_addr,
      .master_port = port,
      .run_id = options.run_id.empty() ? launch::new_run_id() : options.run_id,
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

launch::EngineHost this_host() {
  launch::EngineHost host{.is_root = ::geteuid() == 0,
                          .cores = usable_cores(),
                          .gpus = static_cast<int>(visible_gpus().size())};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = std::min(text.find('='), text.size());
    host.environment[text.substr(0, equals)] = text.substr(std::min(equals + 1, text.size()));
  }
  return host;
}

/// This process becomes the engine: what that prints, how it takes signals and with which code it leaves is as if the user had started it.
[[noreturn]] void become(const std::vector<std::string>& words) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  ::execvp(arguments[0], arguments.data());
  launch::throw_cannot_start(words.front(), errno);
}

void hand_over(launch::Engine engine, Flags& flags, const launch::EngineHost& host) {
  flags.request.command = flags.options.command;
  flags.request.log_dir = flags.options.log_dir;
  flags.request.grace_seconds = flags.options.grace_seconds;
  flags.request.max_restarts = flags.options.max_restarts;
  const std::vector<std::string> words = launch::engine_words(engine, flags.request, host);
  if (flags.dry_run) {
    std::cout << quoted(words) << '\n';
    return;
  }
  if (!flags.options.log_dir.empty()) std::filesystem::create_directories(flags.options.log_dir);
  become(words);
}

void launch_ranks(const CLI::App& app, Flags flags) {
  check(flags);
  const launch::EngineHost host = this_host();
  flags.request.engine = launch::parse_engine(flags.engine);
  const launch::Engine engine = launch::choose_engine(flags.request, host);
  std::vector<std::string>& command = flags.options.command;
  const auto named = [&](const CLI::App* other) { return other->get_name() == command.front(); };
  if (!app.get_subcommands(named).empty()) {
    // They end by themselves: a rank that hangs is found by the others, and one that still saves is not killed.
    command.insert(command.begin(), std::filesystem::read_symlink("/proc/self/exe"));
  } else if (!flags.options.grace_seconds && engine == launch::Engine::local) {
    flags.options.grace_seconds = kGraceOfOthers;
  }
  if (engine != launch::Engine::local) return hand_over(engine, flags, host);
  set_hosts(flags, host);
  set_streams(flags);
  flags.options.own_words = own_words();
  if (flags.dry_run) return print_dry_run(flags.options);
  raise_descriptor_limit();  // the ranks inherit it
  require_descriptors("-n " + std::to_string(flags.options.ranks),
                      kDescriptorsPerRank * flags.options.ranks, "the ranks' output");
  launch::ProcessLoop(flags.options).run();
}

}  // namespace

namespace {

/// torchrun's names, and the variables that it takes them from (Kubeflow sets those).
void add_rank_flags(CLI::App& command, Flags& flags) {
  launch::EngineRequest& request = flags.request;
  command
      .add_option("-n,--nproc-per-node", request.ranks,
                  "Ranks to start on each host: a number, gpu, cpu, or auto (a rank per GPU, else "
                  "per core)")
      ->default_str("1")
      ->envname("PET_NPROC_PER_NODE")
      ->group("Ranks");
  command
      .add_option("--engine", flags.engine,
                  "What starts the ranks: local (this launcher), torchrun, mpirun or srun; auto: "
                  "srun in an allocation of "
                  "Slurm, mpirun with --hosts, torchrun with --rdzv-endpoint, else local")
      ->group("Ranks");
  command
      .add_flag("--standalone", request.standalone,
                "This host alone, in an allocation of Slurm too")
      ->group("Ranks");
  command
      .add_option("--nnodes", request.nodes,
                  "Hosts of the job; this command is started on each of them")
      ->default_str("1")
      ->envname("PET_NNODES")
      ->group("Hosts");
  command.add_option("--node-rank", request.node_rank, "Which of them this host is, from 0 on")
      ->envname("PET_NODE_RANK")
      ->group("Hosts");
  command
      .add_option("--master-addr", request.master_addr,
                  "Name or address of host 0, as all hosts reach it")
      ->envname("PET_MASTER_ADDR")
      ->group("Hosts");
  command
      .add_option("--master-port", request.master_port,
                  "Rendezvous port; on one host 0 is a free one")
      ->default_str("0; 29500 with several hosts")
      ->envname("PET_MASTER_PORT")
      ->group("Hosts");
  command.add_option("--hosts", request.hosts, "Hosts and ranks of mpirun, as in a:2,b:2")
      ->group("Hosts");
  command.add_option("--hostfile", request.hostfile, "The same as a file of mpirun's")
      ->group("Hosts");
  command
      .add_option("--rdzv-endpoint", request.rdzv_endpoint,
                  "Where torchrun's agents meet, HOST[:PORT]")
      ->envname("PET_RDZV_ENDPOINT")
      ->group("Hosts");
  command.add_option("--rdzv-id", request.rdzv_id, "The job's name, equal on all hosts")
      ->envname("PET_RDZV_ID")
      ->group("Hosts");
  command
      .add_option("--rdzv-backend", request.rdzv_backend, "torchrun's; c10d unless said otherwise")
      ->envname("PET_RDZV_BACKEND")
      ->group("Hosts");
}

}  // namespace

CLI::App* add_launch_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  launch::LaunchOptions& options = flags->options;
  CLI::App* const command =
      app.add_subcommand("launch", "Start a program on several ranks, of this host or of several");
  command->footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 100 --run-dir runs/first\n"
      "  fusedbun launch -n 4 --max-restarts 10 -- train --data texts/ --run-dir runs/long\n"
      "  fusedbun launch -n 4 --log-dir logs --tee 3 -- python train.py --lr 1e-3\n"
      "  fusedbun launch --nnodes 2 --node-rank 0 --master-addr node-0 -n 4 -- train   # on "
      "node-0, and 1 on the other\n"
      "  fusedbun launch --hosts node-0:4,node-1:4 -- train                            # by "
      "mpirun\n"
      "  fusedbun launch --dry-run -- train                                            # in an "
      "allocation of Slurm: by srun");
  command
      ->add_option("program", options.command,
                   "Program and arguments, after --; a fusedbun command runs this binary")
      ->default_str("");
  add_rank_flags(*command, *flags);
  command
      ->add_option("--log-dir", options.log_dir,
                   "Write DIR/<run>/attempt_N/<rank>/{stdout,stderr}.log")
      ->group("Output");
  command
      ->add_option("-r,--redirects", flags->request.redirects,
                   "Log file alone: 1 stdout, 2 stderr, 3 both; by rank: 0:3,1:1")
      ->group("Output");
  command
      ->add_option("-t,--tee", flags->request.tee,
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

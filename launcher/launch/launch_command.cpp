#include "fusedbun/launcher/launch/launch_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/launch/engine.h"
#include "fusedbun/launcher/launch/free_port.h"
#include "fusedbun/launcher/launch/process_loop.h"

namespace fusedbun::launcher {
namespace {

constexpr int kRanksMax = 1024;
constexpr int kNodesMax = 65536;
/// torchrun's, where several hosts must know it beforehand.
constexpr int kPortOfSeveralHosts = 29500;
/// What another program gets to leave in, seconds; torchrun's.
constexpr double kGraceOfOthers = 30;
/// Seconds. What fails at once must not start again at once.
constexpr double kRestartDelayMin = 0.1;
constexpr double kRestartDelayMax = 3600;
/// A pipe and a log file for each of its two streams.
constexpr int64_t kDescriptorsPerRank = 4;

struct Flags {
  launch::LaunchOptions options;
  launch::EngineOptions engine_options;
  std::string engine = "auto";
  std::string ranks = "1";
  std::string redirects = "0";
  std::string tee = "0";
  std::optional<int> node_rank;
  int nodes = 1;
  bool standalone = false;
  bool dry_run = false;
};

launch::Variables environment_variables() {
  launch::Variables variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (const size_t end = text.find('='); end != text.npos)
      variables.emplace(text.substr(0, end), text.substr(end + 1));
  }
  return variables;
}

/// torchrun's words: a number, gpu, cpu, or auto: the GPUs of this host, else its cores.
int ranks_of(const std::string& text) {
  const auto gpus = [] { return static_cast<int>(visible_gpus().size()); };
  if (text == "cpu") return usable_cores();
  if (text == "auto") return gpus() > 0 ? gpus() : usable_cores();
  if (text == "gpu") {
    FUSEDBUN_REQUIRE(gpus() > 0, DeviceError,
                     "--nproc-per-node gpu: this host shows no GPU (CUDA_VISIBLE_DEVICES, driver)");
    return gpus();
  }
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  FUSEDBUN_REQUIRE(error == std::errc{} && end == text.data() + text.size(), UsageError,
                   "--nproc-per-node " + text + ": give a number, auto, gpu or cpu");
  return number;
}

/// Where this host has its place among several: torchrun's static form.
void set_place(Flags& flags) {
  launch::LaunchOptions& options = flags.options;
  const launch::EngineOptions& said = flags.engine_options;
  FUSEDBUN_REQUIRE(said.hosts.empty() && said.hostfile.empty(), UsageError,
                   "--hosts and --hostfile are for --engine mpirun; without an engine start the "
                   "same command on every host, with --nnodes, --node-rank and --master-addr");
  FUSEDBUN_REQUIRE(said.rdzv_backend.empty() || said.rdzv_backend == "static", UsageError,
                   "--rdzv-backend " + said.rdzv_backend + " is for --engine torchrun");
  options.nodes = flags.nodes;
  options.node_rank = flags.node_rank.value_or(0);
  options.run_id = said.rdzv_id;
  FUSEDBUN_REQUIRE(options.nodes >= 1 && options.nodes <= kNodesMax, ConfigError,
                   "--nnodes = " + std::to_string(options.nodes) + ": must be 1 to " +
                       std::to_string(kNodesMax));
  FUSEDBUN_REQUIRE(options.node_rank >= 0 && options.node_rank < options.nodes, ConfigError,
                   "--node-rank = " + std::to_string(options.node_rank) + ": must be 0 to " +
                       std::to_string(options.nodes - 1) + ", below --nnodes");
  if (options.nodes == 1) return;
  FUSEDBUN_REQUIRE(
      flags.node_rank && !said.master_addr.empty(), UsageError,
      "--nnodes " + std::to_string(options.nodes) +
          ": start this command on every host, each with its own --node-rank, from 0, and all with "
          "--master-addr, the name or address of host 0; or name an --engine that starts the "
          "hosts");
  options.master_addr = said.master_addr;
  if (options.master_port == 0) options.master_port = kPortOfSeveralHosts;
  if (options.run_id.empty())
    options.run_id = options.master_addr + "-" + std::to_string(options.master_port);
}

/// Becomes the engine's process, or prints its command line.
void hand_over(launch::Engine engine, const Flags& flags) {
  const launch::LaunchOptions& options = flags.options;
  launch::EngineOptions said = flags.engine_options;
  said.nodes = flags.nodes > 1 ? flags.nodes : 0;
  said.node_rank = flags.node_rank;
  said.ranks_per_node = flags.ranks == "1" ? "" : flags.ranks;
  said.master_port = options.master_port;
  said.log_dir = options.log_dir.string();
  if (flags.tee != "0") said.tee = flags.tee;
  if (flags.redirects != "0") said.redirects = flags.redirects;
  said.max_restarts = options.max_restarts;
  said.grace_seconds = options.grace_seconds.value_or(kGraceOfOthers);
  said.is_root = ::geteuid() == 0;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (name.starts_with("FUSEDBUN_") || name == "OMP_NUM_THREADS")
      said.forwarded.emplace_back(name);
  }
  std::ranges::sort(said.forwarded);
  said.command = options.command;
  const std::vector<std::string> words = launch::engine_words(engine, said);
  if (flags.dry_run) {
    std::cout << quoted(words) << '\n';
    return;
  }
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::cout.flush();
  ::execvp(arguments[0], arguments.data());
  throw UsageError("cannot start '" + words[0] + "': " + std::strerror(errno) +
                   "; is it installed, and on PATH?");
}

void check(const Flags& flags) {
  const launch::LaunchOptions& options = flags.options;
  FUSEDBUN_REQUIRE(options.ranks >= 1 && options.ranks <= kRanksMax, ConfigError,
                   "--nproc-per-node = " + std::to_string(options.ranks) + ": must be 1 to " +
                       std::to_string(kRanksMax));
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
  launch::AttemptIdentity identity = {
      .ranks = options.ranks,
      .nodes = options.nodes,
      .node_rank = options.node_rank,
      .master_addr = options.master_addr,
      .master_port =
          options.nodes == 1 ? launch::HeldPort(options.master_port).number() : options.master_port,
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

/// A fusedbun command is one of this binary. Returns whether it is.
bool name_program(const CLI::App& app, std::vector<std::string>& command) {
  FUSEDBUN_REQUIRE(!command.empty(), UsageError,
                   "nothing to launch: put -- and a program after the flags, as in "
                   "'fusedbun launch -n 2 -- train'");
  const auto named = [&](const CLI::App* other) { return other->get_name() == command.front(); };
  if (app.get_subcommands(named).empty()) return false;
  command.insert(command.begin(), std::filesystem::read_symlink("/proc/self/exe"));
  return true;
}

void launch_ranks(const CLI::App& app, Flags flags) {
  const bool is_ours = name_program(app, flags.options.command);
  flags.engine_options.node_rank = flags.node_rank;
  const launch::Engine engine = launch::resolve(launch::parse_engine(flags.engine),
                                                flags.engine_options, environment_variables());
  if (engine != launch::Engine::local) return hand_over(engine, flags);
  flags.options.ranks = ranks_of(flags.ranks);
  set_place(flags);
  check(flags);
  set_streams(flags);
  // Ours end by themselves: a rank that hangs is found by the others, and one that still saves is not killed.
  if (!is_ours && !flags.options.grace_seconds) flags.options.grace_seconds = kGraceOfOthers;
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
      app.add_subcommand("launch", "Start a program on several ranks, of this host or of many");
  command->footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 100 --run-dir runs/first\n"
      "  fusedbun launch -n 4 --max-restarts 10 -- train --data texts/ --run-dir runs/long\n"
      "  fusedbun launch -n 4 --log-dir logs --tee 3 -- python train.py --lr 1e-3\n"
      "  fusedbun launch --nnodes 2 --node-rank 0 --master-addr node0 -n 4 -- train ...   # and 1 "
      "on the "
      "other host\n"
      "  fusedbun launch --hosts node0:4,node1:4 -- train ...    # by mpirun; in a Slurm job: no "
      "flag "
      "at all");
  command
      ->add_option("program", options.command,
                   "Program and arguments, after --; a fusedbun command runs this binary")
      ->default_str("");
  launch::EngineOptions& engine = flags->engine_options;
  // PET_...: as torchrun reads them, and Kubeflow sets them.
  command
      ->add_option("-n,--nproc-per-node", flags->ranks,
                   "Ranks to start on each host: a number, gpu, cpu, or auto (GPUs, else cores)")
      ->envname("PET_NPROC_PER_NODE")
      ->group("Ranks");
  command->add_option("--nnodes", flags->nodes, "Hosts; start this command on each of them")
      ->envname("PET_NNODES")
      ->group("Ranks");
  command->add_option("--node-rank", flags->node_rank, "Which of them this is, from 0")
      ->envname("PET_NODE_RANK")
      ->group("Ranks");
  command
      ->add_option("--master-addr", engine.master_addr,
                   "Name or address of host 0, where the ranks meet")
      ->envname("PET_MASTER_ADDR")
      ->group("Ranks");
  command
      ->add_option("--master-port", options.master_port,
                   "Port there; 0: a free one, on several hosts 29500")
      ->envname("PET_MASTER_PORT")
      ->group("Ranks");
  command->add_flag("--standalone", flags->standalone, "Accepted for torchrun's sake")
      ->group("Ranks");
  command
      ->add_option(
          "--engine", flags->engine,
          "Who starts the ranks: local (this command, on each host), torchrun, mpirun or "
          "srun; auto: mpirun with --hosts, torchrun with --rdzv-endpoint, srun in a Slurm "
          "job of several hosts, else local")
      ->group("Engine");
  command->add_option("--hosts", engine.hosts, "mpirun: hosts and their ranks, a:2,b:2")
      ->group("Engine");
  command->add_option("--hostfile", engine.hostfile, "mpirun: a file of them")->group("Engine");
  command
      ->add_option("--rdzv-endpoint", engine.rdzv_endpoint, "torchrun: HOST:PORT where hosts meet")
      ->envname("PET_RDZV_ENDPOINT")
      ->group("Engine");
  command->add_option("--rdzv-backend", engine.rdzv_backend, "torchrun: c10d unless it says")
      ->envname("PET_RDZV_BACKEND")
      ->group("Engine");
  command
      ->add_option("--rdzv-id", engine.rdzv_id,
                   "Name of the run, the same on all hosts; in paths of log files")
      ->envname("PET_RDZV_ID")
      ->group("Engine");
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
  command->add_flag(
      "--dry-run", flags->dry_run,
      "Print each rank's environment and command, or the engine's command line; start "
      "nothing");
  command->callback([flags, &app] { launch_ranks(app, *flags); });
  return command;
}

}  // namespace fusedbun::launcher

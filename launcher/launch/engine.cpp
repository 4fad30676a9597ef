#include "fusedbun/launcher/launch/engine.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

using Words = std::vector<std::string>;

constexpr std::pair<Engine, std::string_view> kEngines[] = {{Engine::automatic, "auto"},
                                                            {Engine::local, "local"},
                                                            {Engine::torchrun, "torchrun"},
                                                            {Engine::mpirun, "mpirun"},
                                                            {Engine::srun, "srun"}};

void add(Words& words, const std::string& flag, const std::string& value) {
  if (value.empty()) return;
  words.push_back(flag);
  words.push_back(value);
}

std::string text_of(int number) {
  return number > 0 ? std::to_string(number) : "";
}

/// Throws UsageError for the first of these that was given.
void refuse(Engine engine, const std::string& instead,
            std::initializer_list<std::pair<const char*, bool>> flags) {
  for (const auto& [flag, is_given] : flags) {
    FUSEDBUN_REQUIRE(
        !is_given, UsageError,
        std::string(flag) + " means nothing to " + std::string(name_of(engine)) + instead);
  }
}

int number_of_ranks(Engine engine, const std::string& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  FUSEDBUN_REQUIRE(error == std::errc{} && end == text.data() + text.size() && number >= 1,
                   UsageError,
                   "--nproc-per-node " + text + ": " + std::string(name_of(engine)) +
                       " needs a number, because other hosts may have another");
  return number;
}

Words torchrun_words(const EngineOptions& options) {
  refuse(
      Engine::torchrun,
      ": torchrun is started on every host, with --nnodes and --rdzv-endpoint, or --node-rank and "
      "--master-addr",
      {{"--hosts", !options.hosts.empty()}, {"--hostfile", !options.hostfile.empty()}});
  Words words = {"torchrun"};
  const bool is_alone = options.nodes <= 1 && options.rdzv_endpoint.empty();
  if (is_alone) words.push_back("--standalone");
  add(words, "--nnodes", text_of(options.nodes));
  if (options.node_rank) add(words, "--node-rank", std::to_string(*options.node_rank));
  add(words, "--nproc-per-node", options.ranks_per_node.empty() ? "1" : options.ranks_per_node);
  if (!options.rdzv_endpoint.empty()) {
    add(words, "--rdzv-backend", options.rdzv_backend.empty() ? "c10d" : options.rdzv_backend);
    add(words, "--rdzv-endpoint", options.rdzv_endpoint);
    add(words, "--rdzv-id", options.rdzv_id.empty() ? "fusedbun" : options.rdzv_id);
  }
  add(words, "--master-addr", options.master_addr);
  add(words, "--master-port", text_of(options.master_port));
  add(words, "--max-restarts", std::to_string(options.max_restarts));
  add(words, "--log-dir", options.log_dir);
  add(words, "--tee", options.tee.empty() && !options.log_dir.empty() ? "3" : options.tee);
  add(words, "--redirects", options.redirects);
  words.push_back("--no-python");
  return words;
}

/// The words of mpirun 4.
Words mpirun_words(const EngineOptions& options) {
  refuse(Engine::mpirun,
         ": it starts the ranks of all hosts from this one, by --hosts or --hostfile",
         {{"--node-rank", options.node_rank.has_value()},
          {"--rdzv-endpoint", !options.rdzv_endpoint.empty()},
          {"--rdzv-id", !options.rdzv_id.empty()},
          {"--rdzv-backend", !options.rdzv_backend.empty()},
          {"--master-addr", !options.master_addr.empty()},
          {"--master-port", options.master_port > 0}});
  refuse(Engine::mpirun, ": use --log-dir, or mpirun's own flags",
         {{"--tee", !options.tee.empty()}, {"--redirects", !options.redirects.empty()}});
  refuse(Engine::mpirun,
         ", which ends with the first failure: the same command again goes on from the newest "
         "checkpoint; --engine torchrun and Slurm restart by themselves",
         {{"--max-restarts", options.max_restarts > 0}});
  Words words = {"mpirun"};
  if (options.is_root) words.push_back("--allow-run-as-root");
  const auto grace = static_cast<int>(std::ceil(options.grace_seconds));
  for (const char* word : {"--mca", "odls_base_sigkill_timeout"}) words.emplace_back(word);
  words.push_back(std::to_string(grace));
  add(words, "--host", options.hosts);
  add(words, "--hostfile", options.hostfile);
  if (!options.ranks_per_node.empty()) {
    const int ranks = number_of_ranks(Engine::mpirun, options.ranks_per_node);
    add(words, "--map-by", "ppr:" + std::to_string(ranks) + ":node");
    if (options.nodes > 0) add(words, "-np", std::to_string(options.nodes * ranks));
  }
  // Each rank has several threads: Open MPI would give it one core.
  add(words, "--bind-to", "none");
  add(words, "--output-filename", options.log_dir);
  words.push_back("--tag-output");
  for (const std::string& variable : options.forwarded) add(words, "-x", variable);
  return words;
}

Words srun_words(const EngineOptions& options) {
  refuse(Engine::srun, ": Slurm has chosen the hosts, and the ranks read them",
         {{"--hosts", !options.hosts.empty()},
          {"--hostfile", !options.hostfile.empty()},
          {"--node-rank", options.node_rank.has_value()},
          {"--rdzv-endpoint", !options.rdzv_endpoint.empty()},
          {"--rdzv-id", !options.rdzv_id.empty()},
          {"--rdzv-backend", !options.rdzv_backend.empty()},
          {"--master-addr", !options.master_addr.empty()},
          {"--master-port", options.master_port > 0}});
  refuse(Engine::srun, ": use --log-dir, or srun's own --output",
         {{"--tee", !options.tee.empty()}, {"--redirects", !options.redirects.empty()}});
  refuse(Engine::srun, ": Slurm starts a job again by `scontrol requeue` (deploy/slurm)",
         {{"--max-restarts", options.max_restarts > 0}});
  Words words = {"srun", "--kill-on-bad-exit=1", "--label"};
  add(words, "--nodes", text_of(options.nodes));
  if (!options.ranks_per_node.empty()) {
    words.push_back("--ntasks-per-node=" +
                    std::to_string(number_of_ranks(Engine::srun, options.ranks_per_node)));
  }
  // %t: the rank.
  if (!options.log_dir.empty()) words.push_back("--output=" + options.log_dir + "/%t.log");
  return words;
}

}  // namespace

Engine parse_engine(const std::string& text) {
  for (const auto& [engine, name] : kEngines)
    if (text == name) return engine;
  throw ConfigError("--engine = " + text + ": must be auto, local, torchrun, mpirun or srun");
}

std::string_view name_of(Engine engine) {
  for (const auto& [each, name] : kEngines)
    if (each == engine) return name;
  FUSEDBUN_ASSERT(false, "an engine outside its enum");
  return {};
}

Engine resolve(Engine asked, const EngineOptions& options, const Variables& environment) {
  if (asked != Engine::automatic) return asked;
  if (!options.hosts.empty() || !options.hostfile.empty()) return Engine::mpirun;
  const bool is_static = options.rdzv_backend.empty() || options.rdzv_backend == "static";
  if (!options.rdzv_endpoint.empty() || !is_static) return Engine::torchrun;
  // In a step the processes are ranks' own: only a batch script and the shell of salloc start steps.
  const auto hosts = environment.find("SLURM_JOB_NUM_NODES");
  if (hosts != environment.end() && hosts->second != "1" &&
      !environment.contains("SLURM_STEP_ID") && !options.node_rank)
    return Engine::srun;
  return Engine::local;
}

std::vector<std::string> engine_words(Engine engine, const EngineOptions& options) {
  FUSEDBUN_ASSERT(engine != Engine::automatic && engine != Engine::local,
                  "an engine of others is asked for");
  Words words = engine == Engine::torchrun ? torchrun_words(options)
                : engine == Engine::mpirun ? mpirun_words(options)
                                           : srun_words(options);
  words.insert(words.end(), options.command.begin(), options.command.end());
  return words;
}

}  // namespace fusedbun::launch

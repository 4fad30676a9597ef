#include "fusedbun/launcher/launch/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <sstream>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/launch/launch_options.h"

namespace fusedbun::launch {
namespace {

using Words = std::vector<std::string>;

constexpr std::array<std::pair<std::string_view, Engine>, 5> kEngines = {
    {{"auto", Engine::automatic},
     {"local", Engine::local},
     {"torchrun", Engine::torchrun},
     {"mpirun", Engine::mpirun},
     {"srun", Engine::srun}}};
/// mpirun waits as long before it passes SIGTERM on, and as long again before it kills.
constexpr double kMpirunGrace = 10;
/// A host that answers nothing for 10 s is gone.
constexpr const char* kSshNoticesLoss = "-o ServerAliveInterval=5 -o ServerAliveCountMax=2";
constexpr std::array<std::pair<const char*, const char*>, 3> kDaemonNoticesLoss = {
    {{"oob_tcp_keepalive_time", "3"},
     {"oob_tcp_keepalive_intvl", "2"},
     {"oob_tcp_keepalive_probes", "2"}}};
/// Variables of ours and of the transports that mpirun takes to other hosts only when it is told to.
constexpr std::array<std::string_view, 3> kForwarded = {"FUSEDBUN_", "GLOO_", "NCCL_"};

std::string_view name_of(Engine engine) {
  return std::ranges::find(kEngines, engine, &std::pair<std::string_view, Engine>::second)->first;
}

const std::string* find(const EngineHost& host, std::string_view name) {
  const auto found = host.environment.find(name);
  return found == host.environment.end() ? nullptr : &found->second;
}

/// In an allocation, and not in a step of it, whose task this process is.
bool has_allocation(const EngineHost& host) {
  return find(host, "SLURM_JOB_ID") != nullptr && find(host, "SLURM_STEP_ID") == nullptr;
}

void refuse_if(bool given, std::string_view flag, Engine engine, const std::string& instead) {
  FUSEDBUN_REQUIRE(!given, ConfigError,
                   std::string(flag) + " does not go with --engine " +
                       std::string(name_of(engine)) + ": " + instead);
}

void refuse_restarts(const EngineRequest& request, Engine engine, const std::string& instead) {
  refuse_if(request.max_restarts > 0, "--max-restarts", engine, instead);
}

template <class T>
void put(Words& words, const std::string& flag, const std::optional<T>& value) {
  if (!value) return;
  std::ostringstream text;
  text << *value;
  words.insert(words.end(), {flag, text.str()});
}

struct NamedHost {
  std::string name;
  int slots = 0;  ///< 0: not said
};

/// "a:2,b"; a number in brackets is an address of IPv6.
std::vector<NamedHost> parse_hosts(const std::string& text) {
  std::vector<NamedHost> hosts;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t colon = part.rfind(':');
    const bool has_slots = colon != part.npos && part.back() != ']';
    const std::string slots = has_slots ? part.substr(colon + 1) : "";
    const bool is_right =
        !part.empty() && colon != 0 &&
        (!has_slots ||
         (!slots.empty() && slots.size() <= 4 &&
          std::ranges::all_of(slots, [](char digit) { return digit >= '0' && digit <= '9'; })));
    FUSEDBUN_REQUIRE(is_right, UsageError,
                     "--hosts " + text + ": give names and ranks, as in a:2,b:2");
    hosts.push_back(
        {part.substr(0, has_slots ? colon : part.npos), has_slots ? std::stoi(slots) : 0});
    FUSEDBUN_REQUIRE(!has_slots || hosts.back().slots > 0, ConfigError,
                     "--hosts " + text + ": " + hosts.back().name + " gets no rank");
  }
  FUSEDBUN_REQUIRE(!hosts.empty(), UsageError, "--hosts names no host");
  return hosts;
}

/// How many ranks each host gets, if that was said.
std::optional<int> ranks_per_host(const EngineRequest& request, const EngineHost& host) {
  if (!request.ranks) return {};
  return parse_ranks(*request.ranks, host.gpus, host.cores);
}

void put_hosts(Words& words, const EngineRequest& request, std::optional<int> ranks) {
  if (request.hostfile) {
    put(words, "--hostfile", request.hostfile);
    if (ranks) words.insert(words.end(), {"--map-by", "ppr:" + std::to_string(*ranks) + ":node"});
    return;
  }
  if (!request.hosts) {
    words.insert(words.end(), {"-np", std::to_string(ranks.value_or(1))});
    return;
  }
  std::string list;
  int all = 0;
  const std::vector<NamedHost> hosts = parse_hosts(*request.hosts);
  for (const NamedHost& each : hosts) {
    FUSEDBUN_REQUIRE(!ranks || each.slots == 0 || each.slots >= *ranks, ConfigError,
                     "--nproc-per-node " + std::to_string(*ranks) + ": --hosts gives " + each.name +
                         " only " + std::to_string(each.slots));
    const int count = ranks.value_or(std::max(each.slots, 1));
    list += (list.empty() ? "" : ",") + each.name + ":" + std::to_string(count);
    all += count;
  }
  words.insert(words.end(), {"--host", list, "-np", std::to_string(all)});
  if (ranks) words.insert(words.end(), {"--map-by", "ppr:" + std::to_string(*ranks) + ":node"});
}

void put_mpirun_logs(Words& words, const EngineRequest& request) {
  const bool some = request.redirects.find(':') != std::string::npos ||
                    request.tee.find(':') != std::string::npos ||
                    (request.redirects != "0" && request.redirects != "3") ||
                    (request.tee != "0" && request.tee != "3");
  refuse_if(some, "--redirects and --tee of some streams", Engine::mpirun,
            "it writes all of them, with --log-dir to DIR/1/rank.N; give 3 or leave the flag out");
  if (request.log_dir.empty()) return;
  words.insert(words.end(), {"--output-filename",
                             request.log_dir + (request.redirects == "3" ? ":nocopy" : "")});
}

/// mpirun waits for the ssh and for the daemon of each host: without these it would go on waiting for a host that has vanished, long
/// after all ranks left.
void put_loss_of_hosts(Words& words, const EngineRequest& request, const EngineHost& host) {
  if (!request.hosts && !request.hostfile) return;
  for (const auto& [name, value] : kDaemonNoticesLoss)
    words.insert(words.end(), {"--mca", name, value});
  const bool users_own = find(host, "OMPI_MCA_plm_rsh_args") != nullptr ||
                         find(host, "OMPI_MCA_plm_rsh_agent") != nullptr;
  if (!users_own) words.insert(words.end(), {"--mca", "plm_rsh_args", kSshNoticesLoss});
}

Words mpirun_words(const EngineRequest& request, const EngineHost& host) {
  refuse_restarts(request, Engine::mpirun,
                  "it starts nothing again; repeat the command, which goes on from the newest "
                  "checkpoint, or use "
                  "--engine torchrun, or static hosts by --nnodes, --node-rank and --master-addr");
  refuse_if(request.nodes.has_value() || request.node_rank.has_value(), "--nnodes and --node-rank",
            Engine::mpirun, "name its hosts with --hosts or --hostfile, and start it once");
  Words words = {"mpirun"};
  if (host.is_root) words.push_back("--allow-run-as-root");
  const std::optional<int> ranks = ranks_per_host(request, host);
  put_hosts(words, request, ranks);
  const double grace = request.grace_seconds.value_or(kMpirunGrace);
  // Bound to one core, as mpirun does to two ranks and fewer, the threads of a rank would share it.
  words.insert(words.end(), {"--bind-to", "none", "--mca", "odls_base_sigkill_timeout",
                             std::to_string(std::max(1, static_cast<int>(std::lround(grace))))});
  put_mpirun_logs(words, request);
  put_loss_of_hosts(words, request, host);
  if (find(host, "OMP_NUM_THREADS") != nullptr) {
    words.insert(words.end(), {"-x", "OMP_NUM_THREADS"});
  } else if (ranks) {
    words.insert(words.end(),
                 {"-x", "OMP_NUM_THREADS=" + std::to_string(std::max(1, host.cores / *ranks))});
  }
  for (const auto& [name, value] : host.environment) {
    const auto is_prefix = [&](std::string_view prefix) { return name.starts_with(prefix); };
    if (std::ranges::any_of(kForwarded, is_prefix)) words.insert(words.end(), {"-x", name});
  }
  return words;
}

Words srun_words(const EngineRequest& request, const EngineHost& host) {
  FUSEDBUN_REQUIRE(has_allocation(host), ConfigError,
                   "--engine srun needs an allocation of Slurm around it: start it in a script of "
                   "sbatch or a shell of salloc");
  refuse_restarts(request, Engine::srun,
                  "it starts nothing again; let sbatch do it (--requeue, and in the script "
                  "scontrol requeue after exit code 75 or 76)");
  refuse_if(request.grace_seconds.has_value(), "--grace", Engine::srun,
            "the cluster's KillWait decides; sbatch --signal=B:USR1@300 warns earlier");
  refuse_if(
      request.node_rank.has_value() || request.hosts.has_value() || request.hostfile.has_value(),
      "--node-rank, --hosts and --hostfile", Engine::srun, "the allocation has its hosts");
  // By one rank's failure the others are told at once; as with mpirun and torchrun.
  Words words = {"srun", "--kill-on-bad-exit=1"};
  const std::string* nodes = find(host, "SLURM_JOB_NUM_NODES");
  if (request.nodes) words.push_back("--nodes=" + std::to_string(parse_nodes(*request.nodes)));
  if (const auto ranks = ranks_per_host(request, host)) {
    const int hosts = parse_nodes(request.nodes.value_or(nodes ? *nodes : "1"));
    // Both: the script's own number of tasks would otherwise stand above the one of a host.
    words.insert(words.end(), {"--ntasks=" + std::to_string(*ranks * hosts),
                               "--ntasks-per-node=" + std::to_string(*ranks)});
  }
  // Since 22.05 srun no longer takes it from the allocation.
  if (const std::string* cores = find(host, "SLURM_CPUS_PER_TASK"))
    words.push_back("--cpus-per-task=" + *cores);
  if (request.log_dir.empty()) {
    words.push_back("--label");
  } else {
    words.insert(words.end(), {"--output=" + request.log_dir + "/%J.%t.stdout.log",
                               "--error=" + request.log_dir + "/%J.%t.stderr.log"});
  }
  return words;
}

Words torchrun_words(const EngineRequest& request) {
  refuse_if(request.grace_seconds.has_value(), "--grace", Engine::torchrun,
            "torchrun kills ranks 30 s after it has told them to stop");
  refuse_if(request.hosts.has_value() || request.hostfile.has_value(), "--hosts and --hostfile",
            Engine::torchrun, "start it on each host, with one --rdzv-endpoint");
  const bool meets = request.rdzv_endpoint || request.master_addr;
  FUSEDBUN_REQUIRE(
      meets || !request.nodes || *request.nodes == "1", UsageError,
      "--nnodes " + *request.nodes +
          ": torchrun needs --rdzv-endpoint HOST:PORT, or --master-addr and --node-rank");
  Words words = {"torchrun", "--no-python"};
  if (!meets) words.push_back("--standalone");
  if (meets) put(words, "--nnodes", request.nodes);
  words.insert(words.end(), {"--nproc-per-node", request.ranks.value_or("1")});
  if (meets) put(words, "--node-rank", request.node_rank);
  put(words, "--master-addr", request.master_addr);
  put(words, "--master-port", request.master_port);
  if (request.rdzv_endpoint) {
    words.insert(words.end(), {"--rdzv-backend", request.rdzv_backend.value_or("c10d")});
    put(words, "--rdzv-endpoint", request.rdzv_endpoint);
  }
  put(words, "--rdzv-id", request.rdzv_id);
  if (request.max_restarts > 0)
    words.insert(words.end(), {"--max-restarts", std::to_string(request.max_restarts)});
  if (request.log_dir.empty()) return words;
  const bool asked = request.redirects != "0" || request.tee != "0";
  words.insert(words.end(), {"--log-dir", request.log_dir, "--redirects", request.redirects,
                             "--tee", asked ? request.tee : "3"});
  return words;
}

}  // namespace

Engine parse_engine(const std::string& text) {
  const auto found = std::ranges::find(kEngines, text, &std::pair<std::string_view, Engine>::first);
  FUSEDBUN_REQUIRE(found != kEngines.end(), UsageError,
                   "--engine " + text + ": give auto, local, torchrun, mpirun or srun");
  return found->second;
}

Engine choose_engine(const EngineRequest& request, const EngineHost& host) {
  FUSEDBUN_REQUIRE(!request.hosts || !request.hostfile, UsageError,
                   "--hosts and --hostfile: give one of them");
  const bool names_hosts = request.hosts || request.hostfile;
  FUSEDBUN_REQUIRE(
      !names_hosts || !request.rdzv_endpoint, UsageError,
      "--hosts and --hostfile are mpirun's, --rdzv-endpoint is torchrun's: give one of them");
  Engine engine = request.engine;
  if (engine == Engine::automatic) {
    if (request.standalone) {
      engine = Engine::local;
    } else if (names_hosts) {
      engine = Engine::mpirun;
    } else if (request.rdzv_endpoint) {
      engine = Engine::torchrun;
    } else if (request.node_rank || request.master_addr) {
      engine = Engine::local;
    } else {
      engine = has_allocation(host) ? Engine::srun : Engine::local;
    }
  }
  if (engine == Engine::local) {
    refuse_if(names_hosts, "--hosts and --hostfile", engine,
              "it starts no ranks on other hosts; mpirun does");
    refuse_if(request.rdzv_endpoint.has_value(), "--rdzv-endpoint", engine,
              "say --master-addr and --master-port, or use --engine torchrun");
  } else if (engine != Engine::torchrun) {
    refuse_if(request.rdzv_endpoint.has_value() || request.rdzv_backend.has_value(),
              "--rdzv-endpoint and --rdzv-backend", engine, "its ranks find one another by it");
    refuse_if(request.master_addr.has_value(), "--master-addr", engine,
              "its ranks find one another by it");
  }
  return engine;
}

std::vector<std::string> engine_words(Engine engine, const EngineRequest& request,
                                      const EngineHost& host) {
  FUSEDBUN_ASSERT(engine != Engine::local && engine != Engine::automatic,
                  "an engine of another program");
  FUSEDBUN_REQUIRE((request.redirects == "0" && request.tee == "0") || !request.log_dir.empty(),
                   UsageError, "--redirects and --tee need --log-dir, the folder to write to");
  Words words = engine == Engine::mpirun ? mpirun_words(request, host)
                : engine == Engine::srun ? srun_words(request, host)
                                         : torchrun_words(request);
  words.insert(words.end(), request.command.begin(), request.command.end());
  return words;
}

}  // namespace fusedbun::launch

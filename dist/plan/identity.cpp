#include "fusedbun/dist/plan/identity.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/plan/slurm_nodes.h"

namespace fusedbun::plan {
namespace {

constexpr int kPortMax = 65535;

/// The variables in which one launcher says who a process is.
struct LauncherVariables {
  Launcher launcher;
  std::string_view rank, world_size, local_rank, local_world_size, run_id, restart_count;
};
constexpr LauncherVariables kLaunchers[] = {
    {Launcher::torchrun, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
     "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"},
    {Launcher::open_mpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE", ""},
    // The step's number of tasks, not the job's: several steps may share an allocation.
    {Launcher::slurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "", "SLURM_JOB_ID",
     "SLURM_RESTART_COUNT"},
};
constexpr std::string_view kSlurmNtasks =
    "SLURM_NTASKS";  // where an older srun says the number of tasks

/// Launchers that start processes whose place among the others we cannot use.
struct UnknownLauncher {
  std::string_view name, rank, world_size;  ///< world_size: empty if it does not say
};
constexpr UnknownLauncher kUnknownLaunchers[] = {
    {"Flux", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"},
    {"PALS", "PALS_RANKID", "PMI_SIZE"},
    {"Intel MPI or MPICH", "PMI_RANK", "PMI_SIZE"},
    {"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"},
    {"a PMIx launcher", "PMIX_RANK", ""},
};

const std::string* find(const Environment& environment, std::string_view name) {
  const auto found = environment.find(name);
  return found == environment.end() ? nullptr : &found->second;
}

std::string_view world_size_variable(const Environment& environment,
                                     const LauncherVariables& variables) {
  const bool fall_back =
      variables.launcher == Launcher::slurm && !find(environment, variables.world_size);
  return fall_back ? kSlurmNtasks : variables.world_size;
}

int parse_int(std::string_view name, std::string_view text, int min, int max) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole_number = error == std::errc{} && end == text.data() + text.size();
  FUSEDBUN_REQUIRE(whole_number && value >= min && value <= max, ConfigError,
                   std::string(name) + " = '" + std::string(text) +
                       "': must be a whole number from " + std::to_string(min) + " to " +
                       std::to_string(max));
  return value;
}

int int_or(const Environment& environment, std::string_view name, int fallback, int min, int max) {
  const std::string* text = find(environment, name);
  return text ? parse_int(name, *text, min, max) : fallback;
}

std::string text_or(const Environment& environment, std::string_view name,
                    std::string_view fallback) {
  const std::string* text = find(environment, name);
  return text ? *text : std::string(fallback);
}

/// Did this launcher say anything about this process? In a Slurm batch script or an salloc shell
/// SLURM_PROCID may be 0, but only inside a step of srun is there a SLURM_STEP_ID: without it
/// nobody started the other tasks.
bool speaks(const Environment& environment, const LauncherVariables& variables) {
  if (variables.launcher == Launcher::slurm) {
    return find(environment, variables.rank) && find(environment, "SLURM_STEP_ID");
  }
  return find(environment, variables.rank) || find(environment, variables.world_size);
}

/// "Slurm: rank 3 of 8 (SLURM_PROCID)"; the values as they stand, for nobody relies on them.
std::string ignored_text(const Environment& environment, const LauncherVariables& variables) {
  return std::string(name_of(variables.launcher)) + ": rank " +
         text_or(environment, variables.rank, "?") + " of " +
         text_or(environment, world_size_variable(environment, variables), "?") + " (" +
         std::string(variables.rank) + ")";
}

/// SLURM_STEP_TASKS_PER_NODE, "4(x2),3": 4 tasks on each of two nodes, then 3 on one. 0 if it does
/// not cover `node`.
int slurm_tasks_on_node(std::string_view text, int node) {
  constexpr std::string_view kName = "SLURM_STEP_TASKS_PER_NODE";
  constexpr int kMax = std::numeric_limits<int>::max();
  for (int64_t first = 0; !text.empty();) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(part.size() + 1, text.size()));
    const size_t bracket = part.find("(x");
    const int tasks = parse_int(kName, part.substr(0, bracket), 1, kMax);
    int repeat = 1;
    if (bracket != part.npos && part.back() == ')') {
      repeat = parse_int(kName, part.substr(bracket + 2, part.size() - bracket - 3), 1, kMax);
    }
    first += repeat;
    if (node < first) return tasks;
  }
  return 0;
}

/// How many ranks this host has; at least local_rank + 1 where the launcher does not say.
int local_world_size(const Environment& environment, const LauncherVariables& variables,
                     const Identity& identity) {
  const int least = identity.local_rank + 1;
  if (variables.launcher != Launcher::slurm) {
    return int_or(environment, variables.local_world_size, least, least, identity.world_size);
  }
  const std::string* tasks = find(environment, "SLURM_STEP_TASKS_PER_NODE");
  if (!tasks) return least;
  const int node = int_or(environment, "SLURM_NODEID", 0, 0, std::numeric_limits<int>::max());
  return std::max(slurm_tasks_on_node(*tasks, node), least);
}

Identity identity_of(const Environment& environment, const LauncherVariables& variables) {
  constexpr int kMax = std::numeric_limits<int>::max();
  const std::string_view world_size = world_size_variable(environment, variables);
  for (const auto& [present, missing] :
       {std::pair(variables.rank, world_size), std::pair(world_size, variables.rank)}) {
    FUSEDBUN_REQUIRE(find(environment, missing), ConfigError,
                     std::string(present) + " is set but " + std::string(missing) +
                         " is not: set both, or neither");
  }
  Identity identity;
  identity.launcher = variables.launcher;
  identity.world_size = parse_int(world_size, *find(environment, world_size), 1, kMax);
  identity.rank =
      parse_int(variables.rank, *find(environment, variables.rank), 0, identity.world_size - 1);
  identity.local_rank = int_or(environment, variables.local_rank, 0, 0, identity.world_size - 1);
  identity.local_world_size = local_world_size(environment, variables, identity);
  identity.run_id = text_or(environment, variables.run_id, "");
  identity.restart_count = int_or(environment, variables.restart_count, 0, 0, kMax);
  return identity;
}

Identity identity_of(const IdentityFlags& flags) {
  FUSEDBUN_REQUIRE(flags.rank.has_value() == flags.world_size.has_value(), ConfigError,
                   std::string("half an identity: ") + (flags.rank ? "--rank" : "--world-size") +
                       " is given without " + (flags.rank ? "--world-size" : "--rank"));
  Identity identity;
  if (!flags.rank) return identity;
  FUSEDBUN_REQUIRE(*flags.rank >= 0 && *flags.rank < *flags.world_size, ConfigError,
                   "--rank " + std::to_string(*flags.rank) + ": must be from 0 to " +
                       std::to_string(*flags.world_size - 1) + ", below --world-size");
  identity.launcher = Launcher::flags;
  identity.rank = *flags.rank;
  identity.world_size = *flags.world_size;
  return identity;
}

template <class T>
void require_equal(std::string_view flag, const std::optional<T>& given, const T& said,
                   Launcher launcher) {
  const auto text = [](const T& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      return value;
    } else {
      return std::to_string(value);
    }
  };
  FUSEDBUN_REQUIRE(!given || *given == said, ConfigError,
                   std::string(flag) + ' ' + text(*given) + " contradicts " +
                       std::string(name_of(launcher)) + ", which says " + text(said) +
                       ": leave the flag out");
}

uint64_t number_or(const Environment& environment, std::string_view name, uint64_t fallback) {
  return static_cast<uint64_t>(
      int_or(environment, name, static_cast<int>(fallback), 0, std::numeric_limits<int>::max()));
}

/// Under srun every rank knows the step's hosts and numbers: rank 0 is on the first host, and the port is made of the numbers. Not where
/// the user has said which task runs where.
void derive_meeting_point_of_slurm(const Environment& environment, Identity& identity) {
  if (text_or(environment, "SLURM_DISTRIBUTION", "").starts_with("arbitrary")) return;
  for (const std::string_view name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"}) {
    const std::string* nodes = find(environment, name);
    if (!nodes || !find(environment, "SLURM_JOB_ID")) continue;
    const std::vector<std::string> hosts = expand_node_list(name, *nodes);
    // One host needs no name that resolves.
    identity.master_addr = hosts.size() > 1 ? hosts.front() : "127.0.0.1";
    identity.master_port = slurm_port(number_or(environment, "SLURM_JOB_ID", 0),
                                      number_or(environment, "SLURM_STEP_ID", 0));
    identity.master_origin = name;
    return;
  }
}

/// Where the ranks meet. Under torchrun the agent already said it; elsewhere a flag stands above
/// the environment.
void set_meeting_point(const Environment& environment, const IdentityFlags& flags,
                       Identity& identity) {
  const bool said_by_torchrun = identity.launcher == Launcher::torchrun;
  if (identity.launcher == Launcher::slurm) derive_meeting_point_of_slurm(environment, identity);
  identity.master_addr = text_or(environment, "MASTER_ADDR", identity.master_addr);
  identity.master_port = int_or(environment, "MASTER_PORT", identity.master_port, 1, kPortMax);
  if (said_by_torchrun && find(environment, "MASTER_ADDR")) {
    require_equal("--master-addr", flags.master_addr, identity.master_addr, identity.launcher);
  }
  if (said_by_torchrun && find(environment, "MASTER_PORT")) {
    require_equal("--master-port", flags.master_port, identity.master_port, identity.launcher);
  }
  identity.master_addr = flags.master_addr.value_or(identity.master_addr);
  identity.master_port = flags.master_port.value_or(identity.master_port);
  const bool is_given = (flags.master_addr || find(environment, "MASTER_ADDR")) &&
                        (flags.master_port || find(environment, "MASTER_PORT"));
  if (is_given) identity.master_origin.clear();
  identity.agent_serves_store =
      said_by_torchrun && text_or(environment, "TORCHELASTIC_USE_AGENT_STORE", "") == "True";
}

/// Each of their processes would train alone.
void refuse_unknown_launchers(const Environment& environment) {
  for (const UnknownLauncher& launcher : kUnknownLaunchers) {
    const std::string* rank = find(environment, launcher.rank);
    if (rank == nullptr || text_or(environment, launcher.world_size, "") == "1") continue;
    throw ConfigError("started by " + std::string(launcher.name) + " (" +
                      std::string(launcher.rank) + " = " + *rank +
                      "), from which fusedbun cannot tell the ranks of a job: use fusedbun launch, "
                      "torchrun, Open MPI's mpirun or srun, or give each process --rank and "
                      "--world-size");
  }
}

/// Kubeflow says with these how many hosts there are to torchrun and to fusedbun launch; the trainer alone would run once on each.
void refuse_hosts_without_launcher(const Environment& environment) {
  const std::string hosts = text_or(environment, "PET_NNODES", "1");
  FUSEDBUN_REQUIRE(hosts == "1" || hosts == "1:1", ConfigError,
                   "PET_NNODES = " + hosts +
                       " asks for several hosts, and nothing has started ranks on them: put "
                       "'fusedbun launch --' or 'torchrun --no-python fusedbun' before 'train', "
                       "both read PET_*");
}

void check_ranges(const IdentityFlags& flags) {
  FUSEDBUN_REQUIRE(!flags.world_size || *flags.world_size >= 1, ConfigError,
                   "--world-size " + std::to_string(*flags.world_size) + ": must be at least 1");
  FUSEDBUN_REQUIRE(
      !flags.master_port || (*flags.master_port >= 1 && *flags.master_port <= kPortMax),
      ConfigError,
      "--master-port " + std::to_string(*flags.master_port) + ": must be from 1 to " +
          std::to_string(kPortMax));
}

}  // namespace

std::string_view name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::flags:
      return "flags";
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::open_mpi:
      return "Open MPI";
    case Launcher::slurm:
      return "Slurm";
    case Launcher::single:
      return "single process";
  }
  FUSEDBUN_ASSERT(false, "a launcher outside its enum");
  return {};
}

Identity identify(const Environment& environment, const IdentityFlags& flags) {
  check_ranges(flags);
  const LauncherVariables* winner = nullptr;
  std::vector<std::string> ignored;
  for (const LauncherVariables& variables : kLaunchers) {
    if (!speaks(environment, variables)) continue;
    if (winner) {
      ignored.push_back(ignored_text(environment, variables));
    } else {
      winner = &variables;
    }
  }
  if (find(environment, "SLURM_JOB_ID") && !find(environment, "SLURM_STEP_ID")) {
    ignored.push_back("Slurm: an allocation without a step of srun (no SLURM_STEP_ID)");
  }
  if (!winner && !flags.rank) {
    refuse_unknown_launchers(environment);
    refuse_hosts_without_launcher(environment);
  }
  Identity identity = winner ? identity_of(environment, *winner) : identity_of(flags);
  if (winner) {
    require_equal("--rank", flags.rank, identity.rank, identity.launcher);
    require_equal("--world-size", flags.world_size, identity.world_size, identity.launcher);
  }
  set_meeting_point(environment, flags, identity);
  identity.ignored = std::move(ignored);
  return identity;
}

}  // namespace fusedbun::plan

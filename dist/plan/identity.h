#pragma once
// Identity: which rank of how many this process is, and who said so. A pure function of flags and
// environment.
//
// Order: explicit flags > torchrun > Open MPI > Slurm > single process. The innermost launcher wins
// (mpirun inside sbatch sets both); what was seen and not used is kept, so that `fusedbun env` can
// say it. A flag that contradicts the winning launcher is a ConfigError.
//
// Thread safety: values.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::plan {

using Environment = std::map<std::string, std::string, std::less<>>;

enum class Launcher : uint8_t { flags, torchrun, open_mpi, slurm, single };
std::string_view name_of(Launcher launcher);

struct IdentityFlags {
  std::optional<int> rank = std::nullopt;
  std::optional<int> world_size = std::nullopt;
  std::optional<std::string> master_addr = std::nullopt;
  std::optional<int> master_port = std::nullopt;
};

struct Identity {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  Launcher launcher = Launcher::single;
  std::string master_addr = "127.0.0.1";
  int master_port = 0;  ///< 0: none was given
  /// The variable that they were derived from where nobody gave them (SLURM_STEP_NODELIST), or empty.
  std::string master_origin;
  bool agent_serves_store =
      false;           ///< torchrun's agent serves the store on master_port: join as client
  std::string run_id;  ///< of the launcher, or empty
  int restart_count = 0;
  std::vector<std::string> ignored;  ///< "Slurm: rank 3 of 8 (SLURM_PROCID)": seen, not used
};

/// Throws ConfigError for values that are no numbers, a rank outside the world, a world size below
/// 1, half an identity (RANK without WORLD_SIZE), a flag that contradicts the launcher,
/// a launcher that is none of these and started more than this process, or variables of Kubeflow that ask for several hosts
/// where nobody has started ranks on them.
Identity identify(const Environment& environment, const IdentityFlags& flags);

}  // namespace fusedbun::plan

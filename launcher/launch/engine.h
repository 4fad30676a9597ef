#pragma once
// Engine: who starts the ranks. This launcher does on one host, and as one of several that were started on every host (torchrun's static
// form); for the rest it hands over to the launcher that is there, whose command line is built here. Pure.
//
// Thread safety: functions without state.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::launch {

enum class Engine : uint8_t { automatic, local, torchrun, mpirun, srun };
/// Throws ConfigError for another word.
Engine parse_engine(const std::string& text);
std::string_view name_of(Engine engine);

/// What an engine of others is to do.
struct EngineOptions {
  int nodes = 0;                                ///< 0: not said
  std::optional<int> node_rank = std::nullopt;  ///< of this host
  std::string ranks_per_node = {};              ///< a number, or auto, gpu or cpu; empty: not said
  std::string hosts = {};                       ///< a:2,b:2
  std::string hostfile = {};                    ///< mpirun's
  std::string rdzv_endpoint = {};               ///< HOST[:PORT], torchrun's
  std::string rdzv_id = {};
  std::string rdzv_backend = {};
  std::string master_addr = {};
  int master_port = 0;
  std::string log_dir = {};
  std::string tee = {}, redirects = {};  ///< torchrun's notation; empty: not said
  int max_restarts = 0;
  double grace_seconds = 10;                ///< from a signal to stop until SIGKILL
  bool is_root = false;                     ///< Open MPI asks for a flag then
  std::vector<std::string> forwarded = {};  ///< variables that ranks on other hosts need too
  std::vector<std::string> command = {};    ///< program and arguments
};

using Variables = std::map<std::string, std::string, std::less<>>;

/// The engine that `automatic` stands for: mpirun where hosts are named, torchrun for a rendezvous of its kind, srun inside a Slurm
/// allocation of several hosts that has no step yet, else local.
Engine resolve(Engine asked, const EngineOptions& options, const Variables& environment);

/// The command line of `engine`, which is none of ours. Throws UsageError (64) for what that engine does not know.
std::vector<std::string> engine_words(Engine engine, const EngineOptions& options);

}  // namespace fusedbun::launch

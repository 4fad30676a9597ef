#pragma once
// Which program starts the ranks, and the command line that it is handed. Pure: the caller looks at the host and becomes that program.
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
/// Throws UsageError.
Engine parse_engine(const std::string& text);

/// What the user said, as far as another engine has to be told. Nothing: it was not said.
struct EngineRequest {
  Engine engine = Engine::automatic;
  bool standalone = false;
  std::optional<std::string> ranks = {};  ///< on each host: a number, gpu, cpu or auto
  std::optional<std::string> nodes = {};
  std::optional<int> node_rank = {};
  std::optional<std::string> master_addr = {};
  std::optional<int> master_port = {};
  std::optional<std::string> rdzv_backend = {};
  std::optional<std::string> rdzv_endpoint = {};
  std::optional<std::string> rdzv_id = {};
  std::optional<std::string> hosts = {};  ///< "a:2,b:2", or names alone
  std::optional<std::string> hostfile = {};
  std::string log_dir = {};
  std::string redirects = "0";
  std::string tee = "0";
  std::optional<double> grace_seconds = {};
  int max_restarts = 0;
  std::vector<std::string> command = {};
};

/// The host on which the engine is started.
struct EngineHost {
  std::map<std::string, std::string, std::less<>> environment = {};
  bool is_root = false;
  int cores = 1;
  int gpus = 0;
};

/// What `automatic` stands for: srun in a Slurm allocation outside of a step, mpirun where hosts are named, torchrun where there is a
/// rendezvous, else this launcher. Throws UsageError for flags that contradict one another or the engine.
Engine choose_engine(const EngineRequest& request, const EngineHost& host);

/// The program and its arguments, for an engine that is not `local`. Throws UsageError, and ConfigError for what that engine cannot do.
std::vector<std::string> engine_words(Engine engine, const EngineRequest& request,
                                      const EngineHost& host);

}  // namespace fusedbun::launch

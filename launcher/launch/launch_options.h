#pragma once
// What `fusedbun launch` was asked for, and the pure functions that turn it into each rank's environment and streams.
//
// Thread safety: values.
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::launch {

/// Bits as torchrun counts them: 1 standard output, 2 standard error.
enum StreamBits : uint8_t { kNoStream = 0, kOut = 1, kErr = 2, kBoth = 3 };

inline constexpr int kRanksMax = 1024;  ///< on one host

/// torchrun's, where several hosts meet and none is given.
inline constexpr int kStaticPort = 29'500;

struct LaunchOptions {
  int ranks = 1;                          ///< on this host, as on each
  int nodes = 1;                          ///< hosts of the job; a launcher runs on each of them
  int node_rank = 0;                      ///< this host
  std::string master_addr = "127.0.0.1";  ///< of host 0, whose rank 0 serves the store
  int master_port = 0;      ///< 0: a free one, chosen anew for each attempt; one host only
  std::string run_id = {};  ///< equal on all hosts; empty: a new one, for one host
  std::filesystem::path log_dir = {};   ///< empty: no log files
  std::vector<uint8_t> redirects = {};  ///< [rank] StreamBits that go to the log file alone
  std::vector<uint8_t> tee = {};        ///< [rank] StreamBits that go to the log file and on
  std::optional<double> grace_seconds =
      {};  ///< none: ranks leave in their own time, or by a second signal
  int max_restarts = 0;
  double restart_delay_seconds = 1;
  std::vector<std::string> own_words =
      {};  ///< the launcher's, to be said when they can be used again
  std::vector<std::string> command = {};  ///< program and arguments
};

/// Reads torchrun's notation: "3" for all ranks, or "0:3,1:1" for some (the others get 0). Throws UsageError.
std::vector<uint8_t> parse_streams(std::string_view flag, const std::string& text, int ranks);

/// Reads torchrun's --nproc-per-node: a number, or gpu (as many as there are), cpu (usable cores), auto (gpu if there is one, else cpu).
/// Throws UsageError, ConfigError.
int parse_ranks(const std::string& text, int gpus, int cores);

/// Reads torchrun's --nnodes: "2" or "2:2". Throws UsageError, and ConfigError for a number that may change while the job runs.
int parse_nodes(const std::string& text);

/// Where one stream of one rank goes.
struct StreamRoute {
  bool captured =
      true;  ///< through the launcher; otherwise the rank writes to our descriptor itself
  bool to_console = true;
  bool to_log = false;
};

/// A rank that is alone, or rank 0 on a terminal, writes by itself where no log file is asked for, so that progress
/// lines look right; everything else passes through the launcher. `stream` is kOut or kErr.
StreamRoute route(const LaunchOptions& options, int rank, StreamBits stream, bool is_terminal);

/// What is equal for all ranks of one attempt.
struct AttemptIdentity {
  int ranks = 1;  ///< on each host
  int nodes = 1;
  int node_rank = 0;
  std::string master_addr = "127.0.0.1";
  int master_port = 0;
  std::string run_id = {};
  int attempt = 0;
  int max_restarts = 0;
  int cores = 1;
  std::filesystem::path log_dir = {};  ///< of this attempt, empty: none
  std::string last_words = {};         ///< where ranks keep theirs (last_words.h), empty: nowhere
};

/// The variables torchrun sets and $FUSEDBUN_LAST_WORDS, for a job whose rank 0 serves the store itself. OMP_NUM_THREADS is the
/// ranks' share of the cores, at least 1; the caller leaves it out where the user has set one. `local_rank` counts on this host.
std::map<std::string, std::string> rank_environment(const AttemptIdentity& identity,
                                                    int local_rank);

/// Where a rank's log files lie, as torchrun places them: <log_dir of the attempt>/<local_rank>.
std::filesystem::path rank_log_dir(const AttemptIdentity& identity, int local_rank);

}  // namespace fusedbun::launch

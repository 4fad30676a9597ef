#include "fusedbun/launcher/launch/launch_options.h"

#include <algorithm>
#include <regex>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/launch/last_words.h"

namespace fusedbun::launch {

std::vector<uint8_t> parse_streams(std::string_view flag, const std::string& text, int ranks) {
  std::vector<uint8_t> streams(ranks, kNoStream);
  if (text.size() == 1 && text[0] >= '0' && text[0] <= '3') {
    std::ranges::fill(streams, static_cast<uint8_t>(text[0] - '0'));
    return streams;
  }
  static const std::regex all("\\d{1,4}:[0-3](,\\d{1,4}:[0-3])*");
  FUSEDBUN_REQUIRE(std::regex_match(text, all), UsageError,
                   std::string(flag) + " " + text +
                       ": give 0 (none), 1 (stdout), 2 (stderr) or 3 (both), "
                       "for all ranks or by rank as in 0:3,1:1");
  static const std::regex one("(\\d+):(\\d)");
  for (std::sregex_iterator item(text.begin(), text.end(), one), end; item != end; ++item) {
    const int rank = std::stoi((*item)[1]);
    FUSEDBUN_REQUIRE(rank < ranks, ConfigError,
                     std::string(flag) + " " + text + " names rank " + std::to_string(rank) +
                         ", but there are only " + std::to_string(ranks));
    streams[rank] = static_cast<uint8_t>(std::stoi((*item)[2]));
  }
  return streams;
}

namespace {

/// A whole number of at most four digits.
std::optional<int> small_number(const std::string& text) {
  static const std::regex digits("-?\\d{1,4}");
  if (!std::regex_match(text, digits)) return {};
  return std::stoi(text);
}

}  // namespace

int parse_ranks(const std::string& text, int gpus, int cores) {
  FUSEDBUN_REQUIRE(text != "gpu" || gpus > 0, ConfigError,
                   "--nproc-per-node gpu: no GPU is visible here (nvidia-smi lists them)");
  if (text == "gpu" || (text == "auto" && gpus > 0)) return gpus;
  if (text == "cpu" || text == "auto") return cores;
  const std::optional<int> ranks = small_number(text);
  FUSEDBUN_REQUIRE(ranks, UsageError,
                   "--nproc-per-node " + text + ": give a number, gpu, cpu or auto");
  FUSEDBUN_REQUIRE(*ranks >= 1 && *ranks <= kRanksMax, ConfigError,
                   "--nproc-per-node = " + text + ": must be 1 to " + std::to_string(kRanksMax));
  return *ranks;
}

int parse_nodes(const std::string& text) {
  const size_t colon = text.find(':');
  const std::optional<int> least = small_number(text.substr(0, colon));
  const std::optional<int> most = colon == text.npos ? least : small_number(text.substr(colon + 1));
  FUSEDBUN_REQUIRE(least && most, UsageError, "--nnodes " + text + ": give a number of hosts");
  FUSEDBUN_REQUIRE(least == most, ConfigError,
                   "--nnodes " + text +
                       ": a job here has a fixed number of hosts; torchrun alone changes it, with "
                       "--engine torchrun");
  FUSEDBUN_REQUIRE(*least >= 1, ConfigError, "--nnodes = " + text + ": must be at least 1");
  return *least;
}

StreamRoute route(const LaunchOptions& options, int rank, StreamBits stream, bool is_terminal) {
  const auto asked = [&](const std::vector<uint8_t>& streams) {
    return !streams.empty() && (streams[rank] & stream) != 0;
  };
  if (asked(options.redirects)) return {.to_console = false, .to_log = true};
  if (asked(options.tee)) return {.to_log = true};
  return {.captured = options.ranks > 1 && !(rank == 0 && is_terminal)};
}

std::filesystem::path rank_log_dir(const AttemptIdentity& identity, int local_rank) {
  return identity.log_dir / std::to_string(local_rank);
}

std::map<std::string, std::string> rank_environment(const AttemptIdentity& identity,
                                                    int local_rank) {
  const std::string rank_text = std::to_string(identity.node_rank * identity.ranks + local_rank);
  const std::string world_text = std::to_string(identity.nodes * identity.ranks);
  std::map<std::string, std::string> environment = {
      {"RANK", rank_text},
      {"LOCAL_RANK", std::to_string(local_rank)},
      {"ROLE_RANK", rank_text},
      {"WORLD_SIZE", world_text},
      {"LOCAL_WORLD_SIZE", std::to_string(identity.ranks)},
      {"ROLE_WORLD_SIZE", world_text},
      {"ROLE_NAME", "default"},
      {"GROUP_RANK", std::to_string(identity.node_rank)},
      {"GROUP_WORLD_SIZE", std::to_string(identity.nodes)},
      {"MASTER_ADDR", identity.master_addr},
      {"MASTER_PORT", std::to_string(identity.master_port)},
      {"TORCHELASTIC_RUN_ID", identity.run_id},
      {"TORCHELASTIC_RESTART_COUNT", std::to_string(identity.attempt)},
      {"TORCHELASTIC_MAX_RESTARTS", std::to_string(identity.max_restarts)},
      // Said aloud, because a torchrun around us may have set it to True: no agent serves the store here.
      {"TORCHELASTIC_USE_AGENT_STORE", "False"},
      {"OMP_NUM_THREADS", std::to_string(std::max(1, identity.cores / identity.ranks))},
  };
  if (!identity.log_dir.empty()) {
    environment["TORCHELASTIC_ERROR_FILE"] = rank_log_dir(identity, local_rank) / "error.json";
  }
  if (!identity.last_words.empty()) environment[kLastWordsVariable] = identity.last_words;
  return environment;
}

}  // namespace fusedbun::launch

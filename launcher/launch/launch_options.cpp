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

StreamRoute route(const LaunchOptions& options, int rank, StreamBits stream, bool is_terminal) {
  const auto asked = [&](const std::vector<uint8_t>& streams) {
    return !streams.empty() && (streams[rank] & stream) != 0;
  };
  if (asked(options.redirects)) return {.to_console = false, .to_log = true};
  if (asked(options.tee)) return {.to_log = true};
  return {.captured = options.ranks > 1 && !(rank == 0 && is_terminal)};
}

std::filesystem::path rank_log_dir(const AttemptIdentity& identity, int rank) {
  return identity.log_dir / std::to_string(rank);
}

std::map<std::string, std::string> rank_environment(const AttemptIdentity& identity, int rank) {
  const std::string rank_text = std::to_string(rank);
  const std::string ranks_text = std::to_string(identity.ranks);
  std::map<std::string, std::string> environment = {
      {"RANK", rank_text},
      {"LOCAL_RANK", rank_text},
      {"ROLE_RANK", rank_text},
      {"WORLD_SIZE", ranks_text},
      {"LOCAL_WORLD_SIZE", ranks_text},
      {"ROLE_WORLD_SIZE", ranks_text},
      {"ROLE_NAME", "default"},
      {"GROUP_RANK", "0"},
      {"GROUP_WORLD_SIZE", "1"},
      {"MASTER_ADDR", "127.0.0.1"},
      {"MASTER_PORT", std::to_string(identity.master_port)},
      {"TORCHELASTIC_RUN_ID", identity.run_id},
      {"TORCHELASTIC_RESTART_COUNT", std::to_string(identity.attempt)},
      {"TORCHELASTIC_MAX_RESTARTS", std::to_string(identity.max_restarts)},
      // Said aloud, because a torchrun around us may have set it to True: no agent serves the store here.
      {"TORCHELASTIC_USE_AGENT_STORE", "False"},
      {"OMP_NUM_THREADS", std::to_string(std::max(1, identity.cores / identity.ranks))},
  };
  if (!identity.log_dir.empty()) {
    environment["TORCHELASTIC_ERROR_FILE"] = rank_log_dir(identity, rank) / "error.json";
  }
  if (!identity.last_words.empty()) environment[kLastWordsVariable] = identity.last_words;
  return environment;
}

}  // namespace fusedbun::launch

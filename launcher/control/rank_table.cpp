#include "fusedbun/launcher/control/rank_table.h"

#include <google/protobuf/util/time_util.h>

#include <cstdio>

#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Rank;
using google::protobuf::util::TimeUtil;

std::string age_of(const Rank& rank) {
  if (!rank.has_heartbeat_age()) return "none yet";
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s",
                static_cast<double>(TimeUtil::DurationToMilliseconds(rank.heartbeat_age())) / 1e3);
  return text;
}

std::string mebibytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

std::string phase_of(const Rank& rank) {
  return rank.bucket() < 0 ? rank.phase() : rank.phase() + " " + std::to_string(rank.bucket());
}

}  // namespace

std::vector<std::string> rank_table(std::span<const Rank> ranks) {
  std::vector<std::vector<std::string>> rows = {
      {"RANK", "STATE", "HEARTBEAT", "STEP", "PHASE", "HOST", "PID", "DEVICE", "SHARD"}};
  for (const Rank& rank : ranks) {
    rows.push_back({std::to_string(rank.rank()), Rank::Liveness_Name(rank.liveness()), age_of(rank),
                    std::to_string(rank.step()), phase_of(rank), rank.host(),
                    std::to_string(rank.pid()), rank.device(), mebibytes(rank.shard_bytes())});
  }
  return aligned(rows);
}

}  // namespace fusedbun::launcher

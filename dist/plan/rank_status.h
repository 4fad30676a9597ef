#pragma once
// RankStatus: what is known of one rank at one moment, for people. RankDirectory: who knows it. On rank 0 the listener to
// the ranks' heartbeats implements the directory, and dist/control shows what it says (ListRanks, state DEGRADED).
//
// Thread safety: RankStatus is a value; a RankDirectory is called from any thread and guards itself.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/plan/rank_position.h"

namespace fusedbun::plan {

enum class Liveness : uint8_t {
  alive,
  late,     ///< no heartbeat for longer than the degraded limit
  stalled,  ///< heartbeats come, but no step ends
  lost,     ///< given up: no heartbeat for longer than the lost limit, or its connection broke
};

/// What a rank has used since it started; numbers that only grow, except for the memory.
struct RankUsage {
  std::array<int64_t, kPhaseCount> phase_us = {};  ///< [Phase], of phases that have ended
  /// Bytes of messages to other ranks; nothing where they are not counted (NCCL). What ranks read in shared memory is no message.
  std::optional<int64_t> sent_bytes = {};
  int64_t resident_bytes = 0;  ///< of the process

  bool operator==(const RankUsage&) const = default;
};

struct RankStatus {
  int rank = 0;
  int local_rank = 0;
  std::string host = {};
  int64_t pid = 0;
  std::string device = {};  ///< "cpu" or "cuda:N"
  int64_t shard_bytes = 0;  ///< optimizer state it holds
  int64_t job_step = 0;     ///< the step it is in
  Phase phase = Phase::starting;
  int bucket = RankPosition::kNoBucket;          ///< that the phase is about
  std::optional<int64_t> heartbeat_age_ms = {};  ///< empty: none has come yet
  uint64_t state_hash =
      0;  ///< of step counts and effective hyperparameters; equal on all ranks in the same step
  Liveness liveness = Liveness::alive;
  RankUsage usage = {};
};

class RankDirectory {
 public:
  virtual ~RankDirectory() = default;
  /// In order of rank, all of them. Never blocks for long.
  virtual std::vector<RankStatus> ranks() const = 0;
};

}  // namespace fusedbun::plan

#pragma once
// RankWatch: which rank is alive, late, stalled or lost, from its signs of life alone. Pure: the time is an argument,
// microseconds of any steady clock of the caller's.
//
// Invariants: 1. Only time in which the watcher itself ran counts as silence: a watcher that was stopped does not
// accuse the others when it goes on. 2. A rank that left cleanly is never lost. 3. What is lost stays lost. 4. A rank in a
// phase that takes no steps (starting, validate, save, idle, paused) is not stalled. 5. A job with a rank in `paused` does not hang.
//
// Thread safety: none.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/plan/rank_position.h"
#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/step_clock.h"

namespace fusedbun::plan {

/// How long is too long.
struct HealthLimits {
  int64_t heartbeat_us = 1'000'000;  ///< a rank gives a sign of life this often
  int64_t lost_us = 10'000'000;      ///< of silence: the job goes no further
  int64_t stall_us = 5'000'000;      ///< without a step's end, unless 10 median steps are longer
  /// All ranks live, and for so long none has ended a step or changed its phase: the job goes no further. 0: never.
  int64_t hang_us = 1'800'000'000;

  /// Of silence: late, and the job degraded.
  int64_t late_us() const { return 3 * heartbeat_us; }
};
/// Throws ConfigError naming the flag: all are positive (hang_us: or 0), and a rank is late before it is lost.
void validate(const HealthLimits& limits);

struct RankSigns {
  int64_t silence_us = 0;   ///< since its last sign of life
  bool has_gone = false;    ///< its connection broke
  bool has_left = false;    ///< it said that it leaves cleanly
  bool is_stalled = false;  ///< StepClock::is_stalled
};
Liveness liveness_of(const RankSigns& signs, const HealthLimits& limits);

/// Why the job cannot go on: a rank is lost, or all of them hang.
struct LostRank {
  static constexpr int kNone = -1;
  enum class Cause : uint8_t {
    gone = 0,    ///< its connection broke: the process ended, or its host did
    silent = 1,  ///< no heartbeat for longer than the limit
    failed = 2,  ///< it said so itself: `code` and `reason`
    hung = 3,    ///< no rank moves any more: `rank` is kNone, `reason` says where each one is
  };
  int rank = 0;
  std::string host = {};
  int64_t pid = 0;
  RankPosition last = {};  ///< where it was last known to be
  Cause cause = Cause::gone;
  int64_t silence_us = 0;
  int code = 0;             ///< ExitCode; `failed` only
  std::string reason = {};  ///< `failed` and `hung` only

  bool operator==(const LostRank&) const = default;
};
/// "rank 2 (pid 4711 on node3) is lost: its process ended; last seen in update of bucket 1, job step 41"
std::string sentence_of(const LostRank& lost);
/// "ranks 0, 2-3 in all_gather of bucket 1, job step 41; rank 1 in forward_backward, job step 41"
std::string describe_ranks(const std::vector<RankPosition>& positions);

class RankWatch {
 public:
  RankWatch(int ranks, const HealthLimits& limits, int64_t now_us);

  /// From now on the rank must give signs of life.
  void expect(int rank, int64_t now_us);
  void on_heartbeat(int rank, const RankPosition& position, int64_t now_us);
  void on_disconnect(int rank);
  void on_goodbye(int rank);

  /// To be called at least once per heartbeat.
  void tick(int64_t now_us);
  /// The rest speak of the time of the last look.
  Liveness liveness(int rank) const;
  /// Nothing if it was never heard.
  std::optional<int64_t> silence_us(int rank) const;
  RankPosition position(int rank) const { return ranks_[rank].position; }
  /// The first rank found lost, with cause, silence and position.
  std::optional<LostRank> lost() const { return lost_; }
  /// Nothing while some rank moves. Of use to a watcher that hears all ranks. Nothing once
  /// all but one have left: it waits for nobody.
  std::optional<LostRank> hung() const;

 private:
  struct Watched {
    explicit Watched(int64_t stall_us) : steps(stall_us) {}
    bool expected = false;
    bool heard = false;
    int64_t last_sign_us = 0;
    bool gone = false;
    bool left = false;
    RankPosition position;
    StepClock steps;
  };
  RankSigns signs_of(const Watched& rank) const;

  HealthLimits limits_;
  int64_t now_us_;
  int64_t moved_us_;  ///< when some rank's position last changed
  std::vector<Watched> ranks_;
  std::optional<LostRank> lost_;
};

}  // namespace fusedbun::plan

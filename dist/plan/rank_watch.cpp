#include "fusedbun/dist/plan/rank_watch.h"

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

std::string seconds(int64_t us) {
  const int64_t tenths = (us + 50'000) / 100'000;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

/// "rank 4", or "ranks 0, 2-3".
std::string list_of(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (i > 0) text += ", ";
    text += std::to_string(ranks[i]);
    if (last > i) text += "-" + std::to_string(ranks[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace

void validate(const HealthLimits& limits) {
  FUSEDBUN_REQUIRE(limits.heartbeat_us > 0, ConfigError, "--heartbeat: must be above 0 seconds");
  FUSEDBUN_REQUIRE(limits.stall_us > 0, ConfigError, "--stall-timeout: must be above 0 seconds");
  FUSEDBUN_REQUIRE(limits.hang_us >= 0, ConfigError,
                   "--hang-timeout: must be at least 0 seconds (0: never)");
  FUSEDBUN_REQUIRE(limits.lost_us > limits.late_us(), ConfigError,
                   "--lost-timeout = " + seconds(limits.lost_us) +
                       ": must be above 3 heartbeats, " + seconds(limits.late_us()));
}

Liveness liveness_of(const RankSigns& signs, const HealthLimits& limits) {
  if (signs.has_left) return Liveness::alive;
  if (signs.has_gone || signs.silence_us >= limits.lost_us) return Liveness::lost;
  if (signs.silence_us >= limits.late_us()) return Liveness::late;
  return signs.is_stalled ? Liveness::stalled : Liveness::alive;
}

std::string sentence_of(const LostRank& lost) {
  const std::string who = "rank " + std::to_string(lost.rank) + " (pid " +
                          std::to_string(lost.pid) + " on " + lost.host + ") ";
  const std::string where = "; last seen in " + describe(lost.last);
  switch (lost.cause) {
    case LostRank::Cause::gone:
      return who + "is lost: its process ended" + where;
    case LostRank::Cause::silent:
      return who + "is lost: no heartbeat for " + seconds(lost.silence_us) + where;
    case LostRank::Cause::failed:
      return who + "failed with exit code " + std::to_string(lost.code) + " in " +
             describe(lost.last) + ": " + lost.reason;
    case LostRank::Cause::hung:
      return "all ranks live, but none has ended a step or changed its phase for " +
             seconds(lost.silence_us) + " (--hang-timeout): " + lost.reason;
  }
  FUSEDBUN_ASSERT(false, "every cause has a sentence");
}

std::string describe_ranks(const std::vector<RankPosition>& positions) {
  std::vector<std::pair<std::string, std::vector<int>>> places;  // in order of their lowest rank
  for (size_t rank = 0; rank < positions.size(); ++rank) {
    const std::string here = describe(positions[rank]);
    auto place = std::ranges::find(places, here, [](const auto& each) { return each.first; });
    if (place == places.end()) place = places.insert(place, {here, {}});
    place->second.push_back(static_cast<int>(rank));
  }
  std::string text;
  for (const auto& [place, ranks] : places) {
    text += (text.empty() ? "" : "; ") + list_of(ranks) + " in " + place;
  }
  return text;
}

RankWatch::RankWatch(int ranks, const HealthLimits& limits, int64_t now_us)
    : limits_(limits), now_us_(now_us), moved_us_(now_us) {
  ranks_.resize(static_cast<size_t>(ranks), Watched(limits.stall_us));
}

void RankWatch::expect(int rank, int64_t now_us) {
  ranks_[rank].expected = true;
  ranks_[rank].last_sign_us = now_us;
}

void RankWatch::on_heartbeat(int rank, const RankPosition& position, int64_t now_us) {
  Watched& watched = ranks_[rank];
  // A job that is held on request does not hang, however long.
  if (!watched.heard || position != watched.position || position.phase == Phase::paused)
    moved_us_ = now_us;
  if (takes_no_steps(watched.position.phase)) {
    watched.steps.pause(now_us - watched.last_sign_us, now_us);
  }
  if (watched.heard && position.job_step > watched.position.job_step) {
    watched.steps.steps_ended(position.job_step - watched.position.job_step, now_us);
  }
  watched.heard = true;
  watched.last_sign_us = now_us;
  watched.position = position;
}

void RankWatch::on_disconnect(int rank) {
  ranks_[rank].gone = true;
}

void RankWatch::on_goodbye(int rank) {
  ranks_[rank].left = true;
}

void RankWatch::tick(int64_t now_us) {
  if (const int64_t asleep_us = now_us - now_us_; asleep_us >= limits_.late_us()) {
    for (Watched& rank : ranks_) {
      rank.last_sign_us = std::min(rank.last_sign_us + asleep_us, now_us);
      rank.steps.pause(asleep_us, now_us);
    }
    moved_us_ = std::min(moved_us_ + asleep_us, now_us);
  }
  now_us_ = now_us;
  for (size_t r = 0; r < ranks_.size() && !lost_; ++r) {
    const int rank = static_cast<int>(r);
    if (liveness(rank) != Liveness::lost) continue;
    lost_ = LostRank{.rank = rank,
                     .last = ranks_[r].position,
                     .cause = ranks_[r].gone ? LostRank::Cause::gone : LostRank::Cause::silent,
                     .silence_us = now_us - ranks_[r].last_sign_us};
  }
}

std::optional<LostRank> RankWatch::hung() const {
  const int64_t still_us = now_us_ - moved_us_;
  if (limits_.hang_us == 0 || still_us < limits_.hang_us) return {};
  if (std::ranges::count(ranks_, false, &Watched::left) <= 1) return {};
  std::vector<RankPosition> positions;
  for (const Watched& rank : ranks_) positions.push_back(rank.position);
  return LostRank{.rank = LostRank::kNone,
                  .cause = LostRank::Cause::hung,
                  .silence_us = still_us,
                  .reason = describe_ranks(positions)};
}

RankSigns RankWatch::signs_of(const Watched& rank) const {
  return {.silence_us = rank.expected ? now_us_ - rank.last_sign_us : 0,
          .has_gone = rank.gone,
          .has_left = rank.left,
          .is_stalled = rank.steps.is_stalled(now_us_)};
}

Liveness RankWatch::liveness(int rank) const {
  return liveness_of(signs_of(ranks_[rank]), limits_);
}

std::optional<int64_t> RankWatch::silence_us(int rank) const {
  if (!ranks_[rank].heard) return {};
  return now_us_ - ranks_[rank].last_sign_us;
}

}  // namespace fusedbun::plan

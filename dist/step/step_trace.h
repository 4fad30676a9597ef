#pragma once
// StepTrace: what one rank did when, for people who look for lost time. Two tracks: what the training thread does (phases,
// as the position board names them), and what is on the wire meanwhile.
//
// Times are of the steady clock, which the processes of one host share.
//
// Thread safety: one thread at a time; hooks and step() take turns.
#include <cstdint>
#include <string_view>
#include <vector>

#include "fusedbun/dist/comm/work.h"
#include "fusedbun/dist/plan/rank_position.h"

namespace fusedbun {

class StepTrace {
 public:
  using Clock = comm::Clock;

  enum class Track : uint8_t { rank, wire };
  struct Span {
    Track track = Track::rank;
    std::string_view name;  ///< of a phase or operation: a literal
    int bucket = -1;        ///< -1: of none
    int64_t job_step = 0;
    Clock::time_point begin = {};
    Clock::time_point end = {};
  };

  /// The phase before ends, this one begins.
  void enter(const plan::RankPosition& position);
  void add(const Span& span);
  /// Ends the phase under way.
  void finish();

  /// At most a million; what came later is not kept, and `complete` is false.
  const std::vector<Span>& spans() const { return spans_; }
  bool complete() const { return complete_; }

 private:
  std::vector<Span> spans_;
  Span phase_;
  bool under_way_ = false;
  bool complete_ = true;
};

}  // namespace fusedbun

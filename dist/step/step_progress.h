#pragma once
// StepProgress: where this rank stands, published for monitoring: the position board (heartbeats read it) and, if asked for,
// the trace. Waiting for a collective is a phase, so it happens here.
//
// Thread safety: one thread at a time; the board may be read by any.
#include "fusedbun/dist/comm/work.h"
#include "fusedbun/dist/plan/rank_position.h"
#include "fusedbun/dist/step/rank_position_cell.h"
#include "fusedbun/dist/step/sharded_model.h"
#include "fusedbun/dist/step/step_trace.h"

namespace fusedbun {

/// A collective between its start and its end.
struct InFlight {
  comm::Work work;
  comm::Clock::time_point started_at;
};

class StepProgress {
 public:
  /// `board` and `trace` may be null.
  StepProgress(const ShardedModel& model, RankPositionCell* board, StepTrace* trace)
      : model_(model), board_(board != nullptr ? *board : own_board_), trace_(trace) {}

  void enter(plan::Phase phase, int bucket = plan::RankPosition::kNoBucket);
  /// Waits for a bucket's collective in that phase; nothing if it was waited for already. The host waits on CPUs, the current
  /// stream on a GPU.
  void wait(InFlight& collective, plan::Phase phase, int bucket);
  void set_state_digest(uint64_t digest) { board_.set_state_digest(digest); }

 private:
  const ShardedModel& model_;
  RankPositionCell own_board_;
  RankPositionCell& board_;
  StepTrace* trace_;
};

}  // namespace fusedbun

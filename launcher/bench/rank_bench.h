#pragma once
// The measurements that need ranks, as one rank of a job takes part in them. Collective; rank 0's answer is the report's
// rows, the others' is to be ignored.
//
// Thread safety: one at a time.
#include <vector>

#include "fusedbun/dist/job/job.h"
#include "fusedbun/launcher/bench/bench_model.h"
#include "fusedbun/launcher/bench/report.h"
#include "fusedbun/launcher/bench/strategies.h"

namespace fusedbun::bench {

struct RankBenchOptions {
  BenchModel model;
  std::vector<Contestant> contestants;
  int steps = 7;                       ///< timed, after two that are not
  int64_t bytes = int64_t{128} << 20;  ///< of collectives' buffers
};

/// Gradients are given; reduce + step + gather, the copy into bucket memory counted. Rows: name, model, ms.
Json exchange_rows(Job& job, const RankBenchOptions& options);

/// Whole training steps, and forward and backward alone, in turns. Rows: name, model, step_ms, forward_backward_ms,
/// not_forward_backward_ms, state_bytes, peak_rss (bytes; state and peak of the largest rank).
Json train_rows(Job& job, const RankBenchOptions& options);

/// One collective at a time. Rows: operation, backend, bytes, ms, gigabytes_per_second (of what one rank sends).
Json collective_rows(Job& job, const RankBenchOptions& options);

}  // namespace fusedbun::bench

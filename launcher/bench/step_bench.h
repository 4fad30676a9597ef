#pragma once
// `fusedbun bench step`: one process, one optimizer step on a model's shapes: every preset beside LibTorch's own fused
// AdamW (at::_fused_adamw_) and beside the limit that memory sets. All take turns, so a machine that is slow for a while
// is slow for all; nothing is timed before its result was compared with the reference step.
//
// Thread safety: one at a time; sets LibTorch's number of threads.
#include <vector>

#include "fusedbun/launcher/bench/bench_model.h"
#include "fusedbun/launcher/bench/report.h"

namespace fusedbun::bench {

struct StepBenchOptions {
  BenchModel model;
  std::vector<int> threads = {1, 2};
  int rounds = 9;
  bool use_gpu = false;  ///< on cuda:0; LibTorch's CUDA half is loaded
};

/// Rows: preset, model, dtype, device, threads, ns_per_param, ratio_to_adamw_fused, ratio_to_limit, bytes_per_param.
Json bench_step(const StepBenchOptions& options);

}  // namespace fusedbun::bench

#pragma once
// SharedMemoryBucket: ranks of one host. Each writes its gradients where all read them, and the parameters are one replica for all, so
// new rows are where they belong as soon as their owner has written them.
//
// Thread safety: as GradientBucket; the functions have no state.
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "fusedbun/dist/comm/host_window.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

/// Where a bucket lies in a window.
struct WindowPlace {
  int64_t gradient_offset = 0;  ///< bytes from the start of each rank's region
  int first_event = 0;          ///< of two: gradients written, rows written
};

struct WindowLayout {
  comm::WindowSize size;
  std::vector<WindowPlace> buckets;        ///< [bucket - first_bucket]
  std::vector<int64_t> parameter_offsets;  ///< [parameter - first_parameter], bytes into shared()
};

/// Gradients and parameters in the parameters' type, each from the start of a cache line on.
WindowLayout lay_out_window(const plan::ShardPlan& plan, size_t first_parameter,
                            size_t first_bucket);

/// Gives a contiguous parameter the window's memory as its storage; `copy`: with its present values. The storage keeps the
/// window alive.
void move_into_window(const at::Tensor& parameter, std::shared_ptr<comm::HostWindow> window,
                      int64_t offset, bool copy);

std::unique_ptr<GradientBucket> make_shared_memory_bucket(const plan::Bucket& bucket, int rank,
                                                          std::shared_ptr<comm::HostWindow> window,
                                                          const WindowPlace& place);

}  // namespace fusedbun

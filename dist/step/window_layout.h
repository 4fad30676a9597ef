#pragma once
// Where buckets and parameters lie in a host window, and how a parameter gets there.
//
// Thread safety: functions without state.
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "fusedbun/dist/comm/host_window.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

struct WindowLayout {
  comm::WindowSize size;
  std::vector<WindowPlace> buckets;        ///< [bucket - first_bucket]
  std::vector<int64_t> parameter_offsets;  ///< [parameter - first_parameter], bytes into shared()
};

/// Everything starts on a cache line.
WindowLayout lay_out_window(const plan::ShardPlan& plan, size_t first_parameter,
                            size_t first_bucket);

/// Gives a contiguous parameter the window's memory as its storage; `copy`: with its present values. The storage keeps the
/// window alive.
void move_into_window(const at::Tensor& parameter, std::shared_ptr<comm::HostWindow> window,
                      int64_t offset, bool copy);

}  // namespace fusedbun

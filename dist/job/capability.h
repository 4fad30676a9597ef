#pragma once
// What this rank can do: read from the machine and the build, once, before ranks choose a backend.
//
// Thread safety: functions without state.
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"

namespace fusedbun {

/// How a job uses GPUs; equal on all ranks.
struct GpuUse {
  bool use = false;    ///< its parameters are on GPUs
  bool share = false;  ///< several ranks may be on one
};

/// Where the parameters are to be on a GPU, finds this rank's (plan::choose_gpu), or the reason why there is none. Loads LibTorch's CUDA
/// half then.
plan::Capability capability_of(const plan::Identity& identity, plan::BackendRequest request,
                               const GpuUse& gpu);

/// Before anything is connected or written: throws DeviceError unless this rank has a GPU to use.
void require_gpu(const plan::Identity& identity);

/// This process's environment variables.
plan::Environment read_environment();

}  // namespace fusedbun

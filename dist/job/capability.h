#pragma once
// What this rank can do: read from the machine and the build, once, before ranks choose a backend.
//
// Thread safety: functions without state.
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"

namespace fusedbun {

/// `use_gpu`: the job's parameters live on a GPU; rank r of a host takes the r-th one it can see.
plan::Capability capability_of(const plan::Identity& identity, plan::BackendRequest request,
                               bool use_gpu);

/// This process's environment variables.
plan::Environment read_environment();

}  // namespace fusedbun

#pragma once
// NCCL and the part of CUDA's runtime that dist/comm calls, over lazy streams (lazy_cuda.h): collectives between threads that really add up and
// gather, in rank order, when somebody waits for what they leave.
//
// Thread safety: as lazy_cuda.h.
#include "fusedbun/dist/comm/nccl_api.h"

namespace fusedbun::comm {

const NcclApi& lazy_nccl();

}  // namespace fusedbun::comm

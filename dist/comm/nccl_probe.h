#pragma once
// NcclProbe: what this process finds before it connects over NCCL: the libraries' versions and the GPUs that it sees.
//
// Thread safety: a function without state of its own.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace fusedbun::comm {

struct NcclProbe {
  struct Gpu {
    std::array<uint8_t, 16> uuid = {};
    std::string name = {};  ///< "NVIDIA H100 80GB HBM3"
    int64_t memory_bytes = 0;
  };
  int nccl_version = 0;     ///< of the library that is loaded: 23007 is 2.30.7
  int runtime_version = 0;  ///< of the CUDA runtime that is loaded: 13000 is 13.0
  int driver_version = 0;   ///< the newest CUDA that the driver supports; 0: there is no driver
  std::string error = {};   ///< why CUDA does not say which GPUs there are; empty: it does
  std::vector<Gpu> gpus;    ///< [CUDA ordinal]
};

/// Makes no CUDA context.
NcclProbe probe_nccl();

}  // namespace fusedbun::comm

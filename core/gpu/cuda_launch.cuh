#pragma once
// The one place where kernels are started. Everything else of the .cu files is C++ that another compiler takes too: tests put a header of
// this name in front, which runs the kernels on the CPU (tests/cuda_on_cpu).
//
// Thread safety: as CUDA's.
#include <cuda_runtime.h>

#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/cuda_namespace.h"
#include "fusedbun/core/gpu/cuda_stream.h"

/// Memory that the threads of a block share, in a kernel.
#define FUSEDBUN_SHARED(Type, name) __shared__ Type name

namespace fusedbun::cuda {

/// Starts `blocks` blocks of `threads` threads; none is no launch. `what` completes "CUDA could not start ...".
template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), int64_t blocks, int threads,
            CudaStream on, const Arguments&... arguments) {
  if (blocks == 0) return;
  FUSEDBUN_REQUIRE(blocks <= 2147483647, DeviceError,
                   std::string("CUDA could not start ") + what + ": too many blocks of threads");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0,
           static_cast<cudaStream_t>(on.handle())>>>(arguments...);
  const cudaError_t status = cudaGetLastError();
  FUSEDBUN_REQUIRE(status == cudaSuccess, DeviceError,
                   std::string("CUDA could not start ") + what + ": " + cudaGetErrorString(status));
}

}  // namespace fusedbun::cuda

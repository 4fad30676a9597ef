#pragma once
// The fused step on NVIDIA GPUs: a few plain kernels on the caller's stream, nothing waits. No torch.
//
// Invariants: 1. Arithmetic is IEEE, rounded to nearest, never contracted; elementwise results equal the CPU's for
// the same inputs. 2. Row and column sums are float64 in a fixed order of their own: the same bits on every run and
// every GPU, but not the CPU's last bit. 3. The gradient is only read.
//
// Errors: DeviceError with CUDA's text when a launch is refused. Thread safety: distinct segments may be stepped at the
// same time, each on its own stream.
#include <cstddef>

#include "fusedbun/core/fused_pass.h"

namespace fusedbun {

/// A cudaStream_t. There is no default: a stream must be named, and a literal 0 or nullptr does not name one.
class CudaStream {
 public:
  explicit CudaStream(void* handle) : handle_(handle) {}
  CudaStream(int) = delete;
  CudaStream(std::nullptr_t) = delete;
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

/// Bytes of device memory, aligned to 16, that a part of a step needs while it runs.
int64_t cuda_scratch_bytes(const RowRange& range);

/// The parts of a step (segment_step.h), T = float or double; all pointers are to device memory.
template <class T>
void cuda_begin(fused::PassArguments<T> arguments, void* scratch, CudaStream stream);
template <class T>
void cuda_finish(fused::PassArguments<T> arguments, void* scratch, CudaStream stream);

}  // namespace fusedbun

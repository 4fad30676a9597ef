#pragma once
// MemoryUse: the memory that a run has taken at its peak, beyond what the process held before it had a model.
//
// Thread safety: none.
#include <c10/core/Device.h>

#include <cstdint>

namespace fusedbun::train {

class MemoryUse {
 public:
  /// On a CPU what is resident now counts as the process's own; on a GPU nothing does.
  explicit MemoryUse(c10::Device device);
  /// Bytes: on a CPU the largest resident memory so far (VmHWM, which counts memory that processes share in each of them) less that of
  /// the start; on a GPU the most that LibTorch's allocator had given out at once.
  int64_t peak() const;

 private:
  c10::Device device_;
  int64_t before_ = 0;
};

}  // namespace fusedbun::train

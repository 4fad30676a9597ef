#pragma once
// TensorBytes: how many bytes of CPU tensors there are, counted where LibTorch allocates and frees them, since the counter was made. Tensors
// that are older do not count, nor does their end.
//
// Thread safety: none; counts for the thread that made it, and for backward passes that it calls.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace fusedbun::train {

class TensorBytes {
 public:
  int64_t now() const { return count_->now; }
  int64_t peak() const { return count_->peak; }

 private:
  struct Count : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
      now += bytes;
      peak = std::max(peak, now);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t now = 0, peak = 0;
  };
  std::shared_ptr<Count> count_ = std::make_shared<Count>();
  c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, count_};
};

}  // namespace fusedbun::train

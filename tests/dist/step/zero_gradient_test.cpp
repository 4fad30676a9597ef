// What a gradient of zeros costs, counted at LibTorch's allocator.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/step/point_to_point_bucket.h"

namespace fusedbun {
namespace {

/// Adds up what this thread allocates while it is installed.
class AllocatedBytes : public c10::MemoryReportingInfoBase {
 public:
  bool memoryProfilingEnabled() const override { return true; }
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    if (bytes > 0) total += bytes;
  }
  int64_t total = 0;
};

template <class Action>
int64_t allocated_by(Action action) {
  const auto counter = std::make_shared<AllocatedBytes>();
  const c10::DebugInfoGuard installed(c10::DebugInfoKind::PROFILER_STATE, counter);
  action();
  return counter->total;
}

TEST(ZeroGradient, TakesOneSegmentOnceAndNotTheMatrixPerRank) {
  constexpr int64_t kBytes = 4096 * 256 * sizeof(float);
  const auto plan = plan::make_plan(
      std::vector<plan::ParameterSpec>{{.name = "table", .shape = {4096, 256}}}, {.world_size = 4});
  const auto ranks = comm::make_local_communicators(4);
  const auto bucket = make_point_to_point_bucket(plan.buckets[0], *ranks[0],
                                                 {.gradient_type = at::kFloat,
                                                  .in_place_bytes = 64 << 10,
                                                  .routes = plan::route_rows({0, 0, 0, 0}, 0)});
  EXPECT_GE(allocated_by([] { at::zeros({1000}); }), 4000) << "nothing is counted";
  const int64_t first = allocated_by([&] { bucket->add_zero_gradient(0); });
  EXPECT_GE(first, kBytes / 4);
  EXPECT_LE(first, kBytes / 4 + 4096);
  bucket->release_gradients();
  EXPECT_LE(allocated_by([&] { bucket->add_zero_gradient(0); }), 4096);
}

}  // namespace
}  // namespace fusedbun

// Every golden case whose options have a CUDA step, through its kernels and the lazy double of a GPU.
#include <gtest/gtest.h>

#include <cstdio>

#include "fusedbun/core/gpu/device_step.h"
#include "fusedbun/tests/support/golden_cases.h"
#include "lazy_device.h"

namespace fusedbun {
namespace {

using golden::Case;
using golden::Precision;

TEST(DeviceGolden, EveryCaseThroughTheKernels) {
  LazyDevice device;
  const StandInDevice stand_in(device);
  const std::vector<Case> cases = golden::read_cases(golden::directory());
  std::map<Precision, int> counts;
  for (const Case& golden : cases) {
    for (const auto& [precision, expected] : golden.expected) {
      if (!has_device_step(golden.options, golden::scalar_type(precision))) continue;
      ++counts[precision];
      const auto wrong =
          golden::run_fusedbun(golden, precision, at::kCPU, [&] { device.catch_up(); });
      EXPECT_FALSE(wrong) << *wrong;
    }
  }
  std::printf("golden: %zu cases; through the kernels: %d in float64, %d in float32\n",
              cases.size(), counts[Precision::f64], counts[Precision::f32]);
  EXPECT_GT(counts[Precision::f32], 50) << "golden cases took another way";
}

}  // namespace
}  // namespace fusedbun

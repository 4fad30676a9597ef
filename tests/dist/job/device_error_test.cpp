// What LibTorch throws where a GPU fails, as people read it.
#include "fusedbun/dist/job/device_error.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>

#include <stdexcept>

namespace fusedbun {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kWhere = "rank 1 at cuda:1 (GPU-6f1c) on node3";

// The words of CUDACachingAllocator.
constexpr const char* kPage =
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.11 GiB of "
    "which "
    "1.02 GiB is free. Process 4711 has 78.08 GiB memory in use. Of the allocated memory 70.00 GiB "
    "is "
    "allocated by PyTorch.\nSee documentation for Memory Management";

TEST(DeviceErrorBehind, AFullGpuIsNamedWithWhatWasAskedAndIsFree) {
  const auto found = device_error_behind(
      c10::OutOfMemoryError(c10::SourceLocation{__func__, __FILE__, __LINE__}, kPage), kWhere);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->code(), ExitCode::device);
  EXPECT_STREQ(
      found->what(),
      "rank 1 at cuda:1 (GPU-6f1c) on node3: the GPU's memory is full: Tried to allocate 2.00 GiB. "
      "GPU 1 "
      "has a total capacity of 79.11 GiB of which 1.02 GiB is free; take a smaller batch (more "
      "accumulation), a shorter context, the preset compact or more ranks, or end other programs "
      "on "
      "this GPU (nvidia-smi)");
}

TEST(DeviceErrorBehind, OtherWordsAreKeptUpToTheLinesEnd) {
  const auto found = device_error_behind(
      c10::OutOfMemoryError(c10::SourceLocation{__func__, __FILE__, __LINE__}, "no room\nmore"),
      kWhere);
  ASSERT_TRUE(found.has_value());
  EXPECT_THAT(found->what(), HasSubstr("full: no room; take"));
  EXPECT_THAT(found->what(), Not(HasSubstr("more\n")));
}

TEST(DeviceErrorBehind, CudasErrorsAreErrorsOfTheDevice) {
  const auto found = device_error_behind(
      c10::AcceleratorError(c10::SourceLocation{__func__, __FILE__, __LINE__}, 700,
                            "CUDA error: an illegal memory access was encountered\nmore"),
      kWhere);
  ASSERT_TRUE(found.has_value());
  EXPECT_THAT(found->what(),
              HasSubstr("node3: CUDA error: an illegal memory access was encountered ("));
}

TEST(DeviceErrorBehind, OtherErrorsAreNot) {
  EXPECT_EQ(device_error_behind(std::runtime_error("x"), kWhere), std::nullopt);
  EXPECT_EQ(device_error_behind(ConfigError("x"), kWhere), std::nullopt);
  EXPECT_EQ(device_error_behind(
                c10::Error(c10::SourceLocation{__func__, __FILE__, __LINE__}, "shape"), kWhere),
            std::nullopt);
}

}  // namespace
}  // namespace fusedbun

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "fusedbun/launcher/env/host.h"

namespace fusedbun::launcher {
namespace {

constexpr int64_t kMebibyte = 1 << 20;

/// Blocks of 2 MiB whose pages are there.
std::vector<std::unique_ptr<char[]>> blocks(int count) {
  std::vector<std::unique_ptr<char[]>> made;
  for (int i = 0; i < count; ++i) {
    made.push_back(std::make_unique<char[]>(2 * kMebibyte));
    std::memset(made.back().get(), i + 1, 2 * kMebibyte);
  }
  return made;
}

TEST(HostMemory, WhatIsTouchedIsResidentAndItsPeakStays) {
  const ResidentMemory before = resident_memory();
  EXPECT_GT(before.bytes, 0);
  int64_t held = 0;
  {
    const auto made = blocks(32);
    held = resident_memory().bytes;
    EXPECT_GE(held, before.bytes + 60 * kMebibyte);
  }
  // The kernel counts pages per core and adds up now and then.
  EXPECT_GE(resident_memory().peak_bytes, held - kMebibyte);
}

TEST(HostMemory, ReturnedMemoryGoesAlsoWhereWhatWasAllocatedLaterStays) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator keeps what is freed";
#endif
  return_freed_memory();
  const int64_t before = resident_memory().bytes;
  auto made = blocks(32);
  for (size_t i = 0; i + 1 < made.size(); ++i) made[i].reset();  // the last one lies above them
  EXPECT_LE(resident_memory().bytes, before + 8 * kMebibyte);
}

}  // namespace
}  // namespace fusedbun::launcher

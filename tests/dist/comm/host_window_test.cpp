// The host window: ranks as threads for what they read of each other, as processes for what happens when one dies.
#include "fusedbun/dist/comm/host_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <span>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"

namespace fusedbun::comm {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

void on_ranks(int size, const std::function<void(Communicator&)>& body) {
  auto communicators = make_local_communicators(size);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&] { body(*communicator); });
  }
  for (std::thread& thread : threads) thread.join();
}

class HostWindowOver : public ::testing::TestWithParam<int> {};

// Each round every rank writes its region, waits, adds up everybody's, and writes its part of the shared memory.
TEST_P(HostWindowOver, WhatARankWroteBeforePostIsSeenByWhoeverWaited) {
  const int size = GetParam();
  on_ranks(size, [&](Communicator& communicator) {
    const int rank = communicator.rank();
    constexpr int64_t kCount = 1000;
    const auto opened = HostWindow::open(
        communicator, {.region_bytes = kCount * 8, .shared_bytes = size * 8, .events = 2}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    HostWindow& window = *opened.window;
    const auto numbers = [&](std::byte* memory) { return reinterpret_cast<int64_t*>(memory); };
    for (uint32_t round = 1; round <= 200; ++round) {
      int64_t* mine = numbers(window.region(rank));
      for (int64_t i = 0; i < kCount; ++i) mine[i] = round * 1000 + rank + i;
      window.post(0, round);
      window.when_all(0, round).wait();
      int64_t sum = 0;
      for (int r = 0; r < size; ++r) sum += numbers(window.region(r))[kCount - 1];
      numbers(window.shared())[rank] = sum;
      window.post(1, round);
      window.when_all(1, round).wait();
      const int64_t expected = size * (round * 1000 + kCount - 1) + size * (size - 1) / 2;
      for (int r = 0; r < size; ++r) ASSERT_EQ(numbers(window.shared())[r], expected);
    }
  });
}
INSTANTIATE_TEST_SUITE_P(Ranks, HostWindowOver, ::testing::Values(1, 2, 3, 4, 8));

TEST(HostWindow, AWaitForARankThatDoesNotComeEndsAtItsDeadline) {
  on_ranks(2, [](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.events = 1}, 100ms);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    if (communicator.rank() == 0) {
      opened.window->post(0, 1);
      try {
        opened.window->when_all(0, 1).wait();
        ADD_FAILURE();
      } catch (const TimeoutError& error) {
        EXPECT_THAT(error.what(), HasSubstr("for rank 1 in the host window"));
      }
    }
    communicator.barrier().wait();
  });
}

TEST(HostWindow, AnAbortEndsTheWaitsOfTheOthers) {
  on_ranks(3, [](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.events = 1}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    if (communicator.rank() == 2) {
      opened.window->abort();
    } else {
      opened.window->post(0, 1);
      EXPECT_THROW(opened.window->when_all(0, 1).wait(), PeerLostError);
    }
    communicator.barrier().wait();
  });
}

TEST(HostWindow, BreaksWithTheCommunicatorItWasOpenedOver) {
  on_ranks(2, [](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.events = 1}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    if (communicator.rank() == 1) return communicator.abort("rank 1 is lost");
    opened.window->post(0, 1);
    try {
      opened.window->when_all(0, 1).wait();
      ADD_FAILURE();
    } catch (const PeerLostError& error) {
      EXPECT_STREQ(error.what(), "rank 1 is lost");
    }
  });
}

TEST(HostWindow, MoreMemoryThanThereIsIsRefusedOnAllRanksWithTheReason) {
  on_ranks(2, [](Communicator& communicator) {
    const auto opened =
        HostWindow::open(communicator, {.region_bytes = int64_t{1} << 50, .events = 1}, 1s);
    EXPECT_EQ(opened.window, nullptr);
    EXPECT_THAT(opened.reason, HasSubstr("MiB of shared memory"));
  });
}

TEST(HostWindow, LeavesNoNameBehind) {
  const auto names = [] {
    std::vector<std::string> list;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      if (entry.path().filename().string().starts_with("fusedbun")) list.push_back(entry.path());
    }
    return list;
  };
  on_ranks(2, [&](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.region_bytes = 4096, .events = 1}, 1s);
    EXPECT_NE(opened.window, nullptr);
    EXPECT_THAT(names(), ::testing::IsEmpty());
    communicator.barrier().wait();
  });
}

}  // namespace
}  // namespace fusedbun::comm

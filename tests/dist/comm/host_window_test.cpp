// The host window, with ranks as threads.
#include "fusedbun/dist/comm/host_window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/available_memory.h"
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

TEST(HostWindow, AnEventMayBePostedAgainAndRoundsLeftOut) {
  on_ranks(2, [](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.events = 1}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    HostWindow& window = *opened.window;
    for (const uint32_t round : {1u, 2u, 7u}) window.post(0, round);
    window.when_all(0, 5).wait();
    window.when_all(0, 7).wait();
    communicator.barrier().wait();
  });
}

TEST(HostWindow, ARankThatSteppedAsideIsNamedToThoseThatWaitForIt) {
  on_ranks(2, [](Communicator& communicator) {
    const auto opened = HostWindow::open(communicator, {.events = 2}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    HostWindow& window = *opened.window;
    window.post(0, 1);
    if (communicator.rank() == 1) {
      window.step_aside("finish() was called after step 9");
    } else {
      window.when_all(0, 1).wait();  // posted before
      window.post(1, 1);
      const auto begin = std::chrono::steady_clock::now();
      try {
        window.when_all(1, 1).wait();
        ADD_FAILURE();
      } catch (const RankAsideError& error) {
        EXPECT_THAT(error.what(),
                    HasSubstr("rank 1 is elsewhere (finish() was called after step 9) "
                              "where rank 0 waits for it"));
      }
      EXPECT_LT(std::chrono::steady_clock::now() - begin, 10s);
    }
    communicator.barrier().wait();
    // Once both have been aside they go on, in either order.
    if (communicator.rank() == 0) window.step_aside("finish() was called after step 9");
    communicator.barrier().wait();
    window.post(1, 2);
    window.when_all(1, 2).wait();
  });
}

TEST(HostWindow, AWaitKeepsTheWindowAlive) {
  on_ranks(2, [](Communicator& communicator) {
    auto opened = HostWindow::open(communicator, {.events = 1}, 20s);
    ASSERT_NE(opened.window, nullptr) << opened.reason;
    opened.window->post(0, 1);
    Work wait = opened.window->when_all(0, 1);
    const std::weak_ptr<HostWindow> window = opened.window;
    opened.window.reset();
    EXPECT_FALSE(window.expired());
    wait.wait();
    EXPECT_TRUE(window.expired());
    communicator.barrier().wait();
  });
}

// Passes calls on; what the first broadcast brings is changed on the way.
class ChangedOffer final : public Communicator {
 public:
  ChangedOffer(Communicator& inner, int descriptor) : inner_(inner), descriptor_(descriptor) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::string_view backend() const override { return inner_.backend(); }
  DeviceKind device() const override { return inner_.device(); }
  Work reduce_scatter(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return inner_.reduce_scatter(input, output, counts);
  }
  Work all_gather(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return inner_.all_gather(input, output, counts);
  }
  Work all_reduce(Buffer inout, ReduceOp op, ProducerStream) override {
    return inner_.all_reduce(inout, op);
  }
  Work exchange(std::vector<Message> sends, std::vector<Message> receives,
                ProducerStream) override {
    return inner_.exchange(std::move(sends), std::move(receives));
  }
  Work broadcast(Buffer inout, int root, ProducerStream) override {
    inner_.broadcast(inout, root).wait();
    if (broadcasts_++ == 0) {  // rank 0's pid, 8 bytes, then its descriptor
      std::memcpy(static_cast<std::byte*>(inout.data) + 8, &descriptor_, sizeof descriptor_);
    }
    return {};
  }
  Work barrier(ProducerStream) override { return inner_.barrier(); }
  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    return inner_.group(ranks);
  }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }
  std::optional<Failure> failure() const override { return inner_.failure(); }

 private:
  Communicator& inner_;
  const int32_t descriptor_;
  int broadcasts_ = 0;
};

// As where the same pid and number are another process's: an empty file, whose mapped memory nobody may touch.
TEST(HostWindow, AnotherFileWhereTheMemoryShouldBeIsRefusedUntouched) {
  char name[] = "/tmp/fusedbun-host-window-XXXXXX";
  const int other = ::mkstemp(name);
  ASSERT_GE(other, 0);
  ::unlink(name);
  on_ranks(2, [&](Communicator& communicator) {
    ChangedOffer changed(communicator, other);
    Communicator& host = communicator.rank() == 1 ? changed : communicator;
    const auto opened = HostWindow::open(host, {.region_bytes = 4096, .events = 1}, 1s);
    EXPECT_EQ(opened.window, nullptr);
    EXPECT_EQ(opened.reason, "rank 1 finds another file where rank 0's memory should be");
  });
  ::close(other);
}

class FakeSystem {
 public:
  explicit FakeSystem(const std::string& cgroup) {
    char name[] = "/tmp/fusedbun-available-memory-XXXXXX";
    root_ = ::mkdtemp(name);
    write("proc/meminfo", "MemTotal:  9000 kB\nMemFree: 1 kB\nMemAvailable:  4000 kB\n");
    write("proc/self/cgroup", cgroup);
  }
  ~FakeSystem() { std::filesystem::remove_all(root_); }
  void write(const std::filesystem::path& path, const std::string& text) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  const std::filesystem::path& root() const { return root_; }

 private:
  std::filesystem::path root_;
};

TEST(AvailableMemory, IsTheHostsWithoutALimit) {
  const FakeSystem system("0::/job\n");
  EXPECT_EQ(available_memory(system.root()), 4000 * 1024);
  system.write("sys/fs/cgroup/job/memory.max", "max\n");
  system.write("sys/fs/cgroup/job/memory.current", "5\n");
  EXPECT_EQ(available_memory(system.root()), 4000 * 1024);
}

TEST(AvailableMemory, IsWhatTheTightestGroupLeaves) {
  const FakeSystem system("0::/job/step\n");
  system.write("sys/fs/cgroup/job/step/memory.max", "3000000\n");
  system.write("sys/fs/cgroup/job/step/memory.current", "1000000\n");
  EXPECT_EQ(available_memory(system.root()), 2'000'000);
  system.write("sys/fs/cgroup/job/memory.max", "2500000\n");
  system.write("sys/fs/cgroup/job/memory.current", "1500000\n");
  EXPECT_EQ(available_memory(system.root()), 1'000'000);
  system.write("sys/fs/cgroup/job/memory.stat", "anon 7\ninactive_file 400000\nactive_file 9\n");
  EXPECT_EQ(available_memory(system.root()), 1'400'000);
}

TEST(AvailableMemory, KnowsTheFirstVersionToo) {
  const FakeSystem system("9:cpu,cpuacct:/x\n4:memory:/job\n0::/\n");
  system.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
  system.write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100\n");
  EXPECT_EQ(available_memory(system.root()), 4000 * 1024);
  // A container sees its own group at the root.
  system.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
  system.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1100000\n");
  EXPECT_EQ(available_memory(system.root()), 0);
}

}  // namespace
}  // namespace fusedbun::comm

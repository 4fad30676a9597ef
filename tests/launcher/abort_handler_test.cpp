#include "fusedbun/launcher/cli/abort_handler.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <mutex>

namespace fusedbun::launcher {
namespace {

constexpr unsigned kSeconds = 20;  // a process that waits for itself is ended by SIGALRM

std::mutex held;

/// Cores are wanted, and too small for the kernel to write one.
void want_cores() {
  const rlimit one_byte{.rlim_cur = 1, .rlim_max = 1};
  ASSERT_EQ(::setrlimit(RLIMIT_CORE, &one_byte), 0);
}

TEST(AbortHandler, EndsWithTheCodeOfOurBug) {
  EXPECT_EXIT(
      {
        install_abort_handler();
        std::abort();
      },
      testing::ExitedWithCode(70), "");
}

TEST(AbortHandler, LeavesACoreWhileALockThatForkTakesIsHeld) {
  EXPECT_EXIT(
      {
        ::alarm(kSeconds);
        want_cores();
        install_abort_handler();
        // As the allocator does: who forks takes its locks. Here the thread that is interrupted holds one.
        ::pthread_atfork([] { held.lock(); }, nullptr, nullptr);
        held.lock();
        std::raise(SIGABRT);
      },
      testing::ExitedWithCode(70), "");
}

}  // namespace
}  // namespace fusedbun::launcher

#include "fusedbun/dist/job/thread_stacks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <future>
#include <thread>

namespace fusedbun {
namespace {

using ::testing::ContainsRegex;

/// A thread of that name which waits until the object goes.
class WaitingThread {
 public:
  WaitingThread(const char* name, bool blocks_signals) {
    std::promise<void> ready;
    thread_ = std::thread([&, name, blocks_signals, until = end_.get_future().share()] {
      ::pthread_setname_np(::pthread_self(), name);
      sigset_t all;
      ::sigfillset(&all);
      if (blocks_signals) ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
      ready.set_value();
      until.wait();
    });
    ready.get_future().wait();
  }
  ~WaitingThread() {
    end_.set_value();
    thread_.join();
  }
  WaitingThread(const WaitingThread&) = delete;  // owns a thread

 private:
  std::promise<void> end_;
  std::thread thread_;
};

TEST(ThreadStacks, ShowWhereEachThreadWaitsAgainAndAgain) {
  const WaitingThread waiting("waits", false), deaf("deaf", true);
  for (int time = 0; time < 3; ++time) {
    const std::string text = thread_stacks();
    EXPECT_THAT(text, ContainsRegex("\"waits\"[^\n]*\n    [^\n]+\n    [^\n]+\n"));
    EXPECT_THAT(text, ContainsRegex("\"deaf\"[^\n]*: blocks signals\n"));
  }
}

void handler_of_the_program(int) {}

// In a process of its own, in which nobody has asked before.
TEST(ThreadStacksDeathTest, AHandlerOfTheProgramIsLeftAlone) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto check = [] {
    struct sigaction action = {};
    action.sa_handler = handler_of_the_program;
    ::sigaction(SIGRTMIN + 6, &action, nullptr);
    const WaitingThread waiting("waits", false);
    const std::string text = thread_stacks();
    struct sigaction after = {};
    ::sigaction(SIGRTMIN + 6, nullptr, &after);
    const bool is_kept = after.sa_handler == handler_of_the_program;
    const bool is_told = text.find("no frames: the program has a handler") == 0;
    ::_exit(is_kept && is_told && text.find("\"waits\"") != text.npos ? 0 : 1);
  };
  EXPECT_EXIT(check(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace fusedbun

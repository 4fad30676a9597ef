#include "fusedbun/dist/run_folder/standard_error.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <string>

namespace fusedbun::run_folder {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

enum class Kind { pipe, terminal };

/// Standard error into a pipe or a terminal, as long as the object lives.
class Piped {
 public:
  explicit Piped(Kind kind = Kind::pipe) {
    if (kind == Kind::pipe) {
      EXPECT_EQ(::pipe2(ends_, O_CLOEXEC), 0);
    } else {
      EXPECT_EQ(::openpty(&ends_[0], &ends_[1], nullptr, nullptr, nullptr), 0);
    }
    ::dup2(ends_[1], STDERR_FILENO);
    ::close(ends_[1]);
  }
  ~Piped() {
    ::dup2(before_, STDERR_FILENO);
    ::close(before_);
    ::close(ends_[0]);
  }
  std::string read(size_t most) {
    std::string text(most, '\0');
    const ssize_t got = ::read(ends_[0], text.data(), text.size());
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
  }

 private:
  int before_ = ::dup(STDERR_FILENO);
  int ends_[2] = {};
};

TEST(StandardError, AReaderThatHasStoppedIsNotWaitedForTwice) {
  Piped pipe;
  const std::string line(1000, 'x');
  int taken = 0;
  while (write_to_standard_error(line) && taken < 1000) ++taken;
  EXPECT_GE(taken, 50) << "what a pipe holds";
  ASSERT_LT(taken, 1000);
  const auto start = Clock::now();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(write_to_standard_error(line));
  EXPECT_LT(Clock::now() - start, milliseconds(500)) << "the first one alone has waited a second";
  pipe.read(1 << 20);
  EXPECT_TRUE(write_to_standard_error("again\n"));
  EXPECT_EQ(pipe.read(100), "again\n");
}

TEST(StandardError, ATerminalThatIsHeldHoldsNobodyUp) {
  Piped terminal(Kind::terminal);
  ASSERT_TRUE(write_to_standard_error("shown\n"));
  ASSERT_EQ(::tcflow(STDERR_FILENO, TCOOFF), 0);  // Ctrl-S
  const auto start = Clock::now();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(write_to_standard_error("held\n"));
  EXPECT_LT(Clock::now() - start, milliseconds(1'500));
  ASSERT_EQ(::tcflow(STDERR_FILENO, TCOON), 0);
  EXPECT_TRUE(write_to_standard_error("again\n"));
  const std::string expected = "shown\r\nagain\r\n";
  std::string got;  // a terminal hands on what each write left
  while (got.size() < expected.size()) got += terminal.read(100);
  EXPECT_EQ(got, expected);
}

TEST(StandardError, ATerminalThatNobodyReadsHoldsNobodyUp) {
  // Of some lengths a part of the last line still fits, for whose rest a write would wait.
  for (const size_t length : {7u, 67u, 300u, 1000u}) {
    const Piped terminal(Kind::terminal);
    const std::string line = std::string(length, 'x') + "\n";
    int taken = 0;
    while (write_to_standard_error(line) && taken < 100'000) ++taken;
    EXPECT_LT(taken, 100'000);
    EXPECT_FALSE(write_to_standard_error(line));
  }
}

TEST(StandardError, LongTextsArriveWhole) {
  const std::string text(50'000, 'y');
  std::string got;
  {
    Piped pipe;
    EXPECT_TRUE(write_to_standard_error(text));
    while (got.size() < text.size()) got += pipe.read(text.size());
  }
  EXPECT_TRUE(got == text);
}

}  // namespace
}  // namespace fusedbun::run_folder

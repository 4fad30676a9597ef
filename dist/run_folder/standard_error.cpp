#include "fusedbun/dist/run_folder/standard_error.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "fusedbun/dist/run_folder/descriptor.h"

namespace fusedbun::run_folder {
namespace {

constexpr int kPatienceMs = 1'000;
/// A pipe that poll() finds ready takes so much at once (PIPE_BUF).
constexpr size_t kAtOnce = 4096;

/// A terminal that poll() finds ready may take a part of a line and block for the rest, so it is opened once more, without blocking:
/// the flag of standard error itself belongs to all processes that share it. Otherwise nothing is opened.
Descriptor terminal_without_blocking() {
  if (::isatty(STDERR_FILENO) == 0) return {};
  return Descriptor(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

}  // namespace

bool write_to_standard_error(std::string_view text) noexcept {
  static std::atomic<bool> is_stuck = false;
  const Descriptor terminal = terminal_without_blocking();
  const int to = terminal.is_open() ? terminal.value() : STDERR_FILENO;
  while (!text.empty()) {
    pollfd ready{.fd = to, .events = POLLOUT, .revents = 0};
    const int found = ::poll(&ready, 1, is_stuck ? 0 : kPatienceMs);
    if (found < 0 && errno == EINTR) continue;
    if (found == 0) {
      is_stuck = true;
      return false;
    }
    const ssize_t written = ::write(to, text.data(), std::min(text.size(), kAtOnce));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      is_stuck = true;
      return false;
    }
    if (written < 0) return true;
    is_stuck = false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace fusedbun::run_folder

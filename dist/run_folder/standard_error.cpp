#include "fusedbun/dist/run_folder/standard_error.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace fusedbun::run_folder {
namespace {

constexpr int kPatienceMs = 1'000;
/// A pipe that poll() finds ready takes so much at once (PIPE_BUF).
constexpr size_t kAtOnce = 4096;

}  // namespace

bool write_to_standard_error(std::string_view text) noexcept {
  static std::atomic<bool> is_stuck = false;
  while (!text.empty()) {
    pollfd ready{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    const int found = ::poll(&ready, 1, is_stuck ? 0 : kPatienceMs);
    if (found < 0 && errno == EINTR) continue;
    if (found == 0) {
      is_stuck = true;
      return false;
    }
    const ssize_t written = ::write(STDERR_FILENO, text.data(), std::min(text.size(), kAtOnce));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return true;
    is_stuck = false;
    text.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace fusedbun::run_folder

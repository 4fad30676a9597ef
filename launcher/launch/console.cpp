#include "fusedbun/launcher/launch/console.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace fusedbun::launch {

Console::Console(int descriptor, bool shared_with_rank)
    : descriptor_(descriptor), shared_with_rank_(shared_with_rank) {}

void Console::put_line(std::string_view prefix, std::string_view line) {
  if (shared_with_rank_) waiting_ += "\r\033[K";
  waiting_.append(prefix).append(line).append("\n");
}

void Console::write_some() {
  size_t written = 0;
  while (written < waiting_.size()) {
    pollfd ready = {descriptor_, POLLOUT, 0};
    if (::poll(&ready, 1, 0) != 1) break;
    // A pipe that polls as writable takes PIPE_BUF bytes without blocking, and not surely more. The descriptor is
    // shared with other processes, so it must not be made non-blocking.
    const size_t size = std::min<size_t>(PIPE_BUF, waiting_.size() - written);
    const ssize_t taken = ::write(descriptor_, waiting_.data() + written, size);
    if (taken < 0 && (errno == EINTR || errno == EAGAIN)) break;
    if (taken < 0) written = waiting_.size();
    if (taken > 0) written += static_cast<size_t>(taken);
  }
  waiting_.erase(0, written);
}

}  // namespace fusedbun::launch

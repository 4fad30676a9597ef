#include "raw_socket.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace fusedbun::health {
namespace {

using Clock = std::chrono::steady_clock;

int milliseconds_to(Clock::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
  return static_cast<int>(std::max<int64_t>(left.count(), 0));
}

}  // namespace

RawSocket::RawSocket(uint16_t port)
    : descriptor_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (::connect(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return;
  ::close(descriptor_);
  descriptor_ = -1;
}

RawSocket::~RawSocket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

int64_t RawSocket::send_without_end(const std::string& bytes, std::chrono::milliseconds at_most) {
  const Clock::time_point end = Clock::now() + at_most;
  int64_t sent = 0;
  while (Clock::now() < end) {
    const ssize_t taken =
        ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (taken >= 0) {
      sent += taken;
    } else if (errno == EAGAIN) {
      pollfd writable{descriptor_, POLLOUT, 0};
      ::poll(&writable, 1, milliseconds_to(end));
    } else {
      break;
    }
  }
  return sent;
}

bool RawSocket::is_closed_within(std::chrono::milliseconds at_most) {
  const Clock::time_point end = Clock::now() + at_most;
  for (;;) {
    pollfd readable{descriptor_, POLLIN, 0};
    if (::poll(&readable, 1, milliseconds_to(end)) <= 0) return false;
    char dropped[4096];
    if (::recv(descriptor_, dropped, sizeof dropped, 0) <= 0) return true;
  }
}

}  // namespace fusedbun::health

#include "fusedbun/dist/health/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

/// From here on beats are dropped: the peer has not read for hours.
constexpr size_t kUnsentBytesMax = 64 << 10;

bool is_full_or_empty(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

}  // namespace

void Connection::send(const Frame& frame) {
  if (!is_open()) return;
  if (std::holds_alternative<Beat>(frame) && unsent_.size() > kUnsentBytesMax) return;
  unsent_ += encode(frame);
  flush();
}

void Connection::flush() {
  while (is_open() && !unsent_.empty()) {
    const ssize_t sent = ::send(descriptor(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      // A broken connection may still hold frames that came before it broke: receive() finds the end.
      if (!is_full_or_empty(errno)) unsent_.clear();
      return;
    }
    unsent_.erase(0, static_cast<size_t>(sent));
  }
}

std::vector<Frame> Connection::receive(size_t bytes_max) {
  std::vector<Frame> frames;
  if (!is_open()) return frames;
  std::array<char, kReceiveBytesMax> block;
  const size_t room = std::min(bytes_max - received_.size(), block.size());
  const ssize_t got = ::recv(descriptor(), block.data(), room, 0);
  if (got < 0 && is_full_or_empty(errno)) return frames;
  if (got <= 0) {
    close();
    return frames;
  }
  received_.append(block.data(), static_cast<size_t>(got));
  try {
    while (auto frame = take_frame(received_)) frames.push_back(std::move(*frame));
  } catch (const DataError&) {
    close();
  }
  if (received_.size() >= bytes_max) close();
  return frames;
}

void Connection::drain() {
  constexpr int kReadsMax = 16;
  std::array<char, kReceiveBytesMax> block;
  for (int reads = 0; reads < kReadsMax && is_open(); ++reads) {
    if (::recv(descriptor(), block.data(), block.size(), 0) <= 0) return;
  }
}

}  // namespace fusedbun::health

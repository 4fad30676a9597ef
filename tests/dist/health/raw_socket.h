#pragma once
// RawSocket: a stranger's end of a connection on loopback, made of system calls alone, so that a test sends whatever bytes
// it likes and counts those that leave.
//
// Thread safety: none.
#include <chrono>
#include <cstdint>
#include <string>

namespace fusedbun::health {

class RawSocket {
 public:
  /// Connects, blocking; is_open() says whether somebody listened.
  explicit RawSocket(uint16_t port);
  ~RawSocket();
  RawSocket(const RawSocket&) = delete;  // owns a descriptor

  bool is_open() const { return descriptor_ >= 0; }
  /// Sends until it is closed or the time is over; the bytes that the kernel took.
  int64_t send_without_end(const std::string& bytes, std::chrono::milliseconds at_most);
  /// Whether the other end closes the connection within that time. What it sends is dropped.
  bool is_closed_within(std::chrono::milliseconds at_most);

 private:
  int descriptor_ = -1;
};

}  // namespace fusedbun::health

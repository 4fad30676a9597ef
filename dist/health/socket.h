#pragma once
// Sockets of the heartbeat connection: one listens on rank 0, the others connect to it. Plain TCP; on one host over
// loopback.
//
// Thread safety: Descriptor is a value that moves; functions without state.
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace fusedbun::health {

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor();

  int value() const { return value_; }
  bool is_open() const { return value_ >= 0; }
  void close() { *this = Descriptor(); }

 private:
  int value_ = -1;
};

struct ListeningSocket {
  Descriptor descriptor;  ///< does not block
  uint16_t port = 0;
};
/// On a free port, of the loopback interface alone or of all. Throws UnavailableError.
ListeningSocket listen_on_free_port(bool loopback_only);

/// The next connection that waits, not blocking; closed if none does.
Descriptor accept_from(const Descriptor& listener);

/// A connection that does not block. Throws UnavailableError when there is none within `timeout`.
Descriptor connect_to(const std::string& host, uint16_t port, std::chrono::milliseconds timeout);

}  // namespace fusedbun::health

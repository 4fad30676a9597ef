#pragma once
// Sockets of the heartbeat connection: one listens on rank 0, the others connect to it. Plain TCP; on one host over
// loopback. No name is ever resolved: that may take longer than a rank has.
//
// Thread safety: Descriptor is a value that moves; functions without state.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

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

struct Accepted {
  Descriptor descriptor;  ///< does not block; closed if nobody waits
  bool is_out_of_descriptors =
      false;  ///< this process or host has none left: the waiting process goes on waiting
};
/// The next connection that waits, not blocking.
Accepted accept_from(const Descriptor& listener);

/// Addresses under which other hosts may reach this one, as numbers: of every interface that is up, but no loopback and no
/// link-local ones; the first 32.
std::vector<std::string> addresses_of_this_host();

/// Begins to connect, without blocking, to an address that is a number. Closed, with errno, if the kernel refuses.
Descriptor start_connecting(const std::string& address, uint16_t port);
/// 0 or an errno, once the descriptor can be written to.
int connect_error(int descriptor);

}  // namespace fusedbun::health

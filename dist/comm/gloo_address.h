#pragma once
// Addresses: which interface leads to the store, the socket that serves it, and whether it is served. Plain sockets, no
// torch: its own attempts print stacks, and take a multiple of their time-out.
//
// Thread safety: functions without state.
#include <chrono>
#include <cstdint>
#include <string>

namespace fusedbun::comm {

/// True for localhost, 127.0.0.0/8 and ::1.
bool is_loopback(const std::string& address);

/// This host's numeric address on the interface that leads to `address`; "127.0.0.1" or "::1" for loopback that is written as such, and
/// for a name of this host that its own /etc/hosts sends to loopback the address under which other hosts reach it. Throws
/// UnavailableError when no route leads there, or the name does not resolve, which is asked again during `patience` and at most 15 s.
std::string local_address_towards(const std::string& address, std::chrono::milliseconds patience);

/// A bound and listening socket; the caller owns the descriptor.
struct ListeningSocket {
  int descriptor = -1;
  uint16_t port = 0;
};
/// On loopback only if `address` is loopback, else on all interfaces. Port 0 takes a free one. Throws UnavailableError.
ListeningSocket listen_on(const std::string& address, uint16_t port);

/// Waits until somebody listens at address:port, at most `timeout`. Returns why not, or nothing if somebody does.
std::string wait_for_listener(const std::string& address, uint16_t port,
                              std::chrono::milliseconds timeout);

}  // namespace fusedbun::comm

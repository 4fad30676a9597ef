#include "fusedbun/dist/health/socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

constexpr int kKind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};

/// Listens on a free port of `address`; closed, with errno, if the kernel refuses.
template <class Address>
Descriptor try_listen(const Address& address) {
  Descriptor descriptor(::socket(reinterpret_cast<const sockaddr&>(address).sa_family, kKind, 0));
  if (!descriptor.is_open()) return {};
  if constexpr (std::is_same_v<Address, sockaddr_in6>) {
    const int off = 0;  // IPv4 too
    ::setsockopt(descriptor.value(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  }
  if (::bind(descriptor.value(), reinterpret_cast<const sockaddr*>(&address), sizeof address) !=
          0 ||
      ::listen(descriptor.value(), SOMAXCONN) != 0) {
    return {};
  }
  return descriptor;
}

uint16_t port_of(const Descriptor& descriptor) {
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(descriptor.value(), reinterpret_cast<sockaddr*>(&bound), &length);
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(bound).sin6_port
                                           : reinterpret_cast<sockaddr_in&>(bound).sin_port);
}

/// Small frames leave at once.
void send_at_once(const Descriptor& descriptor) {
  const int on = 1;
  ::setsockopt(descriptor.value(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// 0 or an errno.
int try_connect(const Descriptor& descriptor, const addrinfo& target,
                std::chrono::milliseconds timeout) {
  if (::connect(descriptor.value(), target.ai_addr, target.ai_addrlen) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd writable{descriptor.value(), POLLOUT, 0};
  if (::poll(&writable, 1, static_cast<int>(timeout.count())) <= 0) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(descriptor.value(), SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

}  // namespace

Descriptor::~Descriptor() {
  if (value_ >= 0) ::close(value_);
}

ListeningSocket listen_on_free_port(bool loopback_only) {
  ListeningSocket socket;
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(loopback_only ? INADDR_LOOPBACK : INADDR_ANY);
  if (!loopback_only) {
    sockaddr_in6 any6{};
    any6.sin6_family = AF_INET6;
    socket.descriptor = try_listen(any6);
  }
  if (!socket.descriptor.is_open()) socket.descriptor = try_listen(any);  // a kernel without IPv6
  FUSEDBUN_REQUIRE(socket.descriptor.is_open(), UnavailableError,
                   std::string("rank 0 cannot listen for heartbeats: ") + std::strerror(errno));
  socket.port = port_of(socket.descriptor);
  return socket;
}

Descriptor accept_from(const Descriptor& listener) {
  Descriptor accepted(::accept4(listener.value(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (accepted.is_open()) send_at_once(accepted);
  return accepted;
}

Descriptor connect_to(const std::string& host, uint16_t port, std::chrono::milliseconds timeout) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  FUSEDBUN_REQUIRE(status == 0, UnavailableError,
                   "rank 0's address '" + host + "' does not resolve: " + ::gai_strerror(status));
  const std::unique_ptr<addrinfo, FreeAddresses> addresses(list);
  int error = 0;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    Descriptor descriptor(::socket(each->ai_family, kKind, 0));
    if (!descriptor.is_open()) continue;
    error = try_connect(descriptor, *each, timeout);
    if (error != 0) continue;
    send_at_once(descriptor);
    return descriptor;
  }
  throw UnavailableError("no heartbeat connection to rank 0 on " + host + ":" +
                         std::to_string(port) + ": " + std::strerror(error));
}

}  // namespace fusedbun::health

#include "fusedbun/dist/health/socket.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

constexpr int kKind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
/// Every rank tries all of them at the same time.
constexpr size_t kAddressesMax = 32;

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
struct FreeInterfaces {
  void operator()(ifaddrs* list) const { ::freeifaddrs(list); }
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

/// From another host. An address on the loopback interface may be: routed data centres put a host's address there.
bool is_reachable(const sockaddr* address) {
  if (address == nullptr) return false;
  if (address->sa_family == AF_INET) {
    const auto number = ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr);
    return number >> 24 != IN_LOOPBACKNET;
  }
  if (address->sa_family != AF_INET6) return false;
  // A link-local one means something only beside the name of the other host's interface.
  const in6_addr& number = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return !IN6_IS_ADDR_LOOPBACK(&number) && !IN6_IS_ADDR_LINKLOCAL(&number);
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

Accepted accept_from(const Descriptor& listener) {
  Accepted accepted{
      Descriptor(::accept4(listener.value(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC))};
  if (accepted.descriptor.is_open()) {
    send_at_once(accepted.descriptor);
  } else {
    accepted.is_out_of_descriptors =
        errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
  }
  return accepted;
}

std::vector<std::string> addresses_of_this_host() {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return addresses;
  const std::unique_ptr<ifaddrs, FreeInterfaces> interfaces(list);
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    const bool is_usable = (each->ifa_flags & IFF_UP) != 0 && is_reachable(each->ifa_addr);
    if (!is_usable || addresses.size() == kAddressesMax) continue;
    const socklen_t length =
        each->ifa_addr->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    char text[NI_MAXHOST] = {};
    if (::getnameinfo(each->ifa_addr, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0) {
      addresses.emplace_back(text);
    }
  }
  return addresses;
}

Descriptor start_connecting(const std::string& address, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  if (::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &list) != 0) {
    errno = EINVAL;
    return {};
  }
  const std::unique_ptr<addrinfo, FreeAddresses> target(list);
  Descriptor descriptor(::socket(target->ai_family, kKind, 0));
  if (!descriptor.is_open()) return {};
  send_at_once(descriptor);
  if (::connect(descriptor.value(), target->ai_addr, target->ai_addrlen) == 0) return descriptor;
  const int error = errno;
  if (error != EINPROGRESS) descriptor.close();
  errno = error;
  return descriptor;
}

int connect_error(int descriptor) {
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

}  // namespace fusedbun::health

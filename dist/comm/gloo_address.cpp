#include "fusedbun/dist/comm/gloo_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

struct Descriptor {
  int value = -1;
  explicit Descriptor(int descriptor) : value(descriptor) {}
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
  Descriptor(const Descriptor&) = delete;  // owns the socket
  int release() { return std::exchange(value, -1); }
};

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

// A name that is not known yet is asked for again during `patience`: that of a pod or a virtual machine appears while it starts.
Addresses resolve(const std::string& address, std::chrono::milliseconds patience) {
  constexpr std::chrono::milliseconds kPatienceMax{15'000};
  constexpr std::chrono::milliseconds kPause{200};
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* list = nullptr;
  int status = 0;
  const auto deadline = std::chrono::steady_clock::now() + std::min(patience, kPatienceMax);
  for (;;) {
    status = ::getaddrinfo(address.c_str(), "9", &hints, &list);  // any port: nothing is sent
    const bool is_unknown = status == EAI_NONAME || status == EAI_AGAIN;
    if (!is_unknown || std::chrono::steady_clock::now() >= deadline) break;
    std::this_thread::sleep_for(kPause);
  }
  FUSEDBUN_REQUIRE(status == 0, UnavailableError,
                   "gloo: the address '" + address + "' does not resolve (" +
                       ::gai_strerror(status) +
                       "): give a name or number that all ranks can reach");
  return Addresses(list);
}

std::string text_of(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST] = {};
  const int status = ::getnameinfo(address, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST);
  return status == 0 ? text : "";
}

/// Our address on the way to `target`, or nothing if there is none. Connecting a datagram socket sends nothing: the kernel only chooses
/// the route, and with it our address.
std::string source_towards(const sockaddr* target, socklen_t target_length) {
  const Descriptor probe(::socket(target->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (probe.value < 0 || ::connect(probe.value, target, target_length) != 0) return {};
  sockaddr_storage local{};
  socklen_t length = sizeof local;
  auto* const raw = reinterpret_cast<sockaddr*>(&local);
  return ::getsockname(probe.value, raw, &length) == 0 ? text_of(raw, length) : "";
}

/// An address under which other hosts may reach this one: of the interface that leads to everywhere, else of the first that is up.
std::string address_of_this_host() {
  sockaddr_in elsewhere{};
  elsewhere.sin_family = AF_INET;
  elsewhere.sin_port = htons(9);
  ::inet_pton(AF_INET, "192.0.2.1",
              &elsewhere.sin_addr);  // reserved for documents; nothing is sent
  const std::string by_route =
      source_towards(reinterpret_cast<sockaddr*>(&elsewhere), sizeof elsewhere);
  if (!by_route.empty()) return by_route;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    const bool leads_out = (each->ifa_flags & IFF_UP) != 0 && (each->ifa_flags & IFF_LOOPBACK) == 0;
    if (leads_out && each->ifa_addr != nullptr && each->ifa_addr->sa_family == AF_INET) {
      return text_of(each->ifa_addr, sizeof(sockaddr_in));
    }
  }
  return {};
}

int listen_once(const sockaddr* address, socklen_t length) {
  Descriptor descriptor(::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (descriptor.value < 0) return -1;
  const int on = 1;
  const int off = 0;
  // A restarted job finds its port in TIME_WAIT; a port that is listened on stays refused.
  ::setsockopt(descriptor.value, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address->sa_family == AF_INET6) {
    ::setsockopt(descriptor.value, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  }
  if (::bind(descriptor.value, address, length) != 0 || ::listen(descriptor.value, SOMAXCONN) != 0)
    return -1;
  return descriptor.release();
}

uint16_t port_of(int descriptor) {
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  FUSEDBUN_REQUIRE(::getsockname(descriptor, reinterpret_cast<sockaddr*>(&bound), &length) == 0,
                   UnavailableError,
                   std::string("gloo: a bound socket has no port: ") + std::strerror(errno));
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

// One attempt, of at most `patience_ms`; 0 or an errno.
int try_connect(const addrinfo& target, uint16_t port, int patience_ms) {
  const Descriptor probe(
      ::socket(target.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (probe.value < 0) return errno;
  sockaddr_storage address{};
  std::memcpy(&address, target.ai_addr, target.ai_addrlen);
  (address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                 : reinterpret_cast<sockaddr_in*>(&address)->sin_port) =
      htons(port);
  if (::connect(probe.value, reinterpret_cast<sockaddr*>(&address), target.ai_addrlen) == 0)
    return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd writable{probe.value, POLLOUT, 0};
  if (::poll(&writable, 1, patience_ms) <= 0) return ETIMEDOUT;
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(probe.value, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

}  // namespace

bool is_loopback(const std::string& address) {
  return address == "localhost" || address == "::1" || address.rfind("127.", 0) == 0;
}

std::string local_address_towards(const std::string& address, std::chrono::milliseconds patience) {
  if (is_loopback(address)) return address == "::1" ? "::1" : "127.0.0.1";
  const Addresses addresses = resolve(address, patience);
  for (const addrinfo* each = addresses.get(); each != nullptr; each = each->ai_next) {
    const std::string source = source_towards(each->ai_addr, each->ai_addrlen);
    if (source.empty()) continue;
    // A host's own name often stands for loopback in its /etc/hosts (127.0.1.1 on Debian), where no other host gets to it.
    const std::string outside = is_loopback(source) ? address_of_this_host() : "";
    return outside.empty() ? source : outside;
  }
  throw UnavailableError("gloo: no network interface leads to '" + address + "' (" +
                         std::strerror(errno) + ")");
}

ListeningSocket listen_on(const std::string& address, uint16_t port) {
  int descriptor = -1;
  if (address == "::1") {
    sockaddr_in6 loopback{};
    loopback.sin6_family = AF_INET6;
    loopback.sin6_addr = in6addr_loopback;
    loopback.sin6_port = htons(port);
    descriptor = listen_once(reinterpret_cast<const sockaddr*>(&loopback), sizeof loopback);
  } else if (is_loopback(address)) {
    sockaddr_in loopback{};
    loopback.sin_family = AF_INET;
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    loopback.sin_port = htons(port);
    descriptor = listen_once(reinterpret_cast<const sockaddr*>(&loopback), sizeof loopback);
  } else {
    sockaddr_in6 any{};  // IPv4 too
    any.sin6_family = AF_INET6;
    any.sin6_port = htons(port);
    descriptor = listen_once(reinterpret_cast<const sockaddr*>(&any), sizeof any);
    if (descriptor < 0 && errno != EADDRINUSE) {  // a kernel without IPv6
      sockaddr_in any4{};
      any4.sin_family = AF_INET;
      any4.sin_port = htons(port);
      descriptor = listen_once(reinterpret_cast<const sockaddr*>(&any4), sizeof any4);
    }
  }
  FUSEDBUN_REQUIRE(descriptor >= 0, UnavailableError,
                   "gloo: rank 0 cannot serve the store on " + address + ":" +
                       std::to_string(port) + " (" + std::strerror(errno) +
                       "): choose another port, or end the job that holds it");
  return {descriptor, port_of(descriptor)};
}

std::string wait_for_listener(const std::string& address, uint16_t port,
                              std::chrono::milliseconds timeout) {
  constexpr std::chrono::milliseconds kPause{20};
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  const Addresses addresses = resolve(address, timeout);
  for (;;) {
    int error = 0;
    for (const addrinfo* each = addresses.get(); each != nullptr; each = each->ai_next) {
      const auto left = deadline - std::chrono::steady_clock::now();
      const auto left_ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
      error = try_connect(*each, port, static_cast<int>(std::clamp<int64_t>(left_ms, 0, 5000)));
      if (error == 0) return {};
    }
    if (std::chrono::steady_clock::now() + kPause >= deadline) return std::strerror(error);
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace fusedbun::comm

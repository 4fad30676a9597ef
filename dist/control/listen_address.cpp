#include "fusedbun/dist/control/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <functional>
#include <optional>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/socket_path.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/private_folder.h"

namespace fusedbun::control {
namespace {

/// A socket that closes itself.
class Socket {
 public:
  explicit Socket(int family) : fd_(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;  // owns a file descriptor
  int fd() const { return fd_; }

 private:
  int fd_;
};

/// The pid of the process that listens on the connected socket, as text for a message.
std::string owner_of(int connected) {
  ucred owner{};
  socklen_t size = sizeof owner;
  if (::getsockopt(connected, SOL_SOCKET, SO_PEERCRED, &owner, &size) != 0) return "a job";
  return "the job of pid " + std::to_string(owner.pid);
}

void require_free_socket(const std::filesystem::path& path) {
  struct stat found {};
  if (::lstat(path.c_str(), &found) != 0) return;
  FUSEDBUN_REQUIRE(
      S_ISSOCK(found.st_mode), IoError,
      path.string() + " is in the way of the control socket and is no socket: move it");
  const Socket probe(AF_UNIX);
  const sockaddr_un address = SocketPath(path).for_kernel();
  if (::connect(probe.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    throw UnavailableError(owner_of(probe.fd()) + " already listens on " + path.string() +
                           ": end it, or give this job another run folder");
  }
  FUSEDBUN_REQUIRE(
      errno == ECONNREFUSED, UnavailableError,
      "cannot tell whether a job listens on " + path.string() + ": " + std::strerror(errno));
  ::unlink(path.c_str());  // nobody listens: left by a job that died
}

/// An IP address and port for bind(), of either family.
struct IpAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  int family() const { return storage.ss_family; }
};

/// Nothing if `host` is no IP address; IPv6 stands in brackets.
std::optional<IpAddress> ip_address(const std::string& host, int port) {
  IpAddress ip;
  const auto network_port = htons(static_cast<uint16_t>(port));
  auto& v4 = reinterpret_cast<sockaddr_in&>(ip.storage);
  if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = network_port;
    ip.size = sizeof v4;
    return ip;
  }
  if (host.size() < 2 || host.front() != '[' || host.back() != ']') return std::nullopt;
  auto& v6 = reinterpret_cast<sockaddr_in6&>(ip.storage);
  if (::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &v6.sin6_addr) != 1)
    return std::nullopt;
  v6.sin6_family = AF_INET6;
  v6.sin6_port = network_port;
  ip.size = sizeof v6;
  return ip;
}

/// The one way to write it: "[0::0]" is "[::]".
std::string text_of(const IpAddress& ip) {
  char text[INET6_ADDRSTRLEN] = {};
  if (ip.family() == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(ip.storage).sin_addr, text,
                sizeof text);
    return text;
  }
  ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6&>(ip.storage).sin6_addr, text,
              sizeof text);
  return "[" + std::string(text) + "]";
}

void require_free_port(const ListenAddress& address) {
  if (address.port == 0) return;
  const auto ip = ip_address(address.host, address.port);
  const Socket probe(ip->family());
  const int on = 1;  // as gRPC does: a port in TIME_WAIT is free
  ::setsockopt(probe.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  FUSEDBUN_REQUIRE(
      ::bind(probe.fd(), reinterpret_cast<const sockaddr*>(&ip->storage), ip->size) == 0,
      UnavailableError,
      "cannot listen on " + address.text() + ": " + std::strerror(errno) +
          ": choose another port, or 0 for any free one");
}

/// Whether a socket can be made beside `path`; some network, FUSE and Windows file systems take none.
bool takes_sockets(const std::filesystem::path& path) {
  const std::filesystem::path probe_path =
      path.parent_path() / ("." + std::to_string(::getpid()) + ".sock");
  const SocketPath in_short(probe_path);
  const sockaddr_un address = in_short.for_kernel();
  const Socket probe(AF_UNIX);
  const bool is_bound =
      ::bind(probe.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  if (is_bound) ::unlink(probe_path.c_str());
  return is_bound;
}

std::filesystem::path socket_path(const std::filesystem::path& run_dir) {
  const std::filesystem::path folder = std::filesystem::absolute(run_dir).lexically_normal();
  const std::filesystem::path usual = folder / run_folder::kSocketName;
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(usual, error)) ||
      takes_sockets(usual))
    return usual;
  char digits[16];
  const auto end = std::to_chars(std::begin(digits), std::end(digits),
                                 std::hash<std::string>{}(folder.native()), 16)
                       .ptr;
  return run_folder::runtime_folder() / (std::string(digits, end) + ".sock");
}

/// "10.0.0.7:5000", "[fd00::7]:5000"
std::string with_port(const std::string& host, int port) {
  const bool needs_brackets = host.find(':') != host.npos && host.front() != '[';
  return (needs_brackets ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

}  // namespace

std::string ListenAddress::text() const {
  return socket.empty() ? host + ":" + std::to_string(port) : "unix:" + socket.string();
}

bool ListenAddress::is_local() const {
  if (!socket.empty() || host == "[::1]") return true;
  in_addr v4{};
  return ::inet_pton(AF_INET, host.c_str(), &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
}

std::vector<std::string> ListenAddress::reachable_under(
    std::span<const std::string> of_this_host) const {
  if (!socket.empty()) return {};
  const bool is_any_v4 = host == "0.0.0.0";
  const bool is_any = is_any_v4 || host == "[::]";
  if (!is_any) return {text()};
  // gRPC serves both families on either.
  std::vector<std::string> addresses = {with_port("127.0.0.1", port)};
  if (!is_any_v4) addresses.push_back(with_port("::1", port));
  for (const std::string& own : of_this_host) {
    const bool is_v6 = own.find(':') != own.npos;
    if (!(is_any_v4 && is_v6)) addresses.push_back(with_port(own, port));
  }
  return addresses;
}

ListenAddress choose_address(const std::filesystem::path& run_dir, const std::string& address) {
  if (address.empty()) return {.socket = socket_path(run_dir), .host = {}, .port = 0};
  const size_t colon = address.rfind(':');
  FUSEDBUN_REQUIRE(colon != std::string::npos && colon > 0, ConfigError,
                   "control address '" + address + "' is not HOST:PORT");
  std::string host = address.substr(0, colon);
  const std::string_view digits = std::string_view(address).substr(colon + 1);
  int port = -1;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  FUSEDBUN_REQUIRE(read.ec == std::errc{} && read.ptr == digits.data() + digits.size() &&
                       port >= 0 && port <= 65535,
                   ConfigError, "control address '" + address + "' has no port from 0 to 65535");
  if (host == "localhost") host = "127.0.0.1";
  const auto ip = ip_address(host, port);
  FUSEDBUN_REQUIRE(
      ip.has_value(), ConfigError,
      "control address '" + address +
          "' does not begin with an IP address of this machine, as 127.0.0.1 or [::1]");
  return {.socket = {}, .host = text_of(*ip), .port = port};
}

void require_free(const ListenAddress& address) {
  if (address.socket.empty()) {
    require_free_port(address);
  } else {
    require_free_socket(address.socket);
  }
}

}  // namespace fusedbun::control

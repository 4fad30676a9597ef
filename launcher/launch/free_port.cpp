#include "fusedbun/launcher/launch/free_port.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {

HeldPort::HeldPort(int wanted) : descriptor_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  FUSEDBUN_REQUIRE(descriptor_ >= 0, IoError, std::string("no socket: ") + std::strerror(errno));
  // As the store binds: a port whose old connections are still closing counts as free, one that is listened on does not.
  const int on = 1;
  ::setsockopt(descriptor_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<uint16_t>(wanted));
  socklen_t size = sizeof(address);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  if (::bind(descriptor_, raw, size) == 0 && ::getsockname(descriptor_, raw, &size) == 0) {
    number_ = ntohs(address.sin_port);
    return;
  }
  const int error = errno;
  ::close(std::exchange(descriptor_, -1));
  const std::string where = "--master-port " + std::to_string(wanted) + ": ";
  FUSEDBUN_REQUIRE(error != EACCES, PermissionError, where + "ports below 1024 need root");
  throw UnavailableError(where + std::strerror(error) + "; leave the flag out to get a free port");
}

HeldPort::~HeldPort() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace fusedbun::launch

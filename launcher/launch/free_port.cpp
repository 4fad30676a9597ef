#include "fusedbun/launcher/launch/free_port.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {

int free_port(int wanted) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  FUSEDBUN_REQUIRE(listener >= 0, IoError, std::string("no socket: ") + std::strerror(errno));
  // As the store binds: a port whose old connections are still closing counts as free, one that is listened on does
  // not.
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<uint16_t>(wanted));
  socklen_t size = sizeof(address);
  auto* const raw = reinterpret_cast<sockaddr*>(&address);
  const bool bound = ::bind(listener, raw, size) == 0 && ::listen(listener, 1) == 0 &&
                     ::getsockname(listener, raw, &size) == 0;
  const int error = errno;
  ::close(listener);
  if (bound) return ntohs(address.sin_port);
  const std::string where = "--master-port " + std::to_string(wanted) + ": ";
  FUSEDBUN_REQUIRE(error != EACCES, PermissionError, where + "ports below 1024 need root");
  throw UnavailableError(where + std::strerror(error) + "; leave the flag out to get a free port");
}

}  // namespace fusedbun::launch

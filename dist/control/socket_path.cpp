#include "fusedbun/dist/control/socket_path.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

constexpr size_t kPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;  // 107

/// Surely a path to gRPC too.
bool is_plain(std::string_view path) {
  return std::ranges::all_of(path, [](char c) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return is_letter || (c >= '0' && c <= '9') ||
           std::string_view("/._-+=@~").find(c) != std::string_view::npos;
  });
}

}  // namespace

SocketPath::SocketPath(const std::filesystem::path& path)
    : reachable_(std::filesystem::absolute(path).lexically_normal()) {
  if (reachable_.size() <= kPathBytesMax && is_plain(reachable_)) return;
  const std::filesystem::path whole = reachable_;
  folder_ = ::open(whole.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  FUSEDBUN_REQUIRE(folder_ >= 0, UnavailableError,
                   "cannot open " + whole.parent_path().string() +
                       ", the folder of a socket: " + std::strerror(errno));
  reachable_ = "/proc/self/fd/" + std::to_string(folder_) + "/" + whole.filename().string();
}

SocketPath::~SocketPath() {
  if (folder_ >= 0) ::close(folder_);
}

sockaddr_un SocketPath::for_kernel() const {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  reachable_.copy(address.sun_path, kPathBytesMax);
  return address;
}

std::string SocketPath::for_grpc() const {
  return "unix:" + reachable_;
}

}  // namespace fusedbun::control

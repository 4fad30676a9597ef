#pragma once
// SocketPath: the path of a Unix socket in a form that the kernel and gRPC take, however long it is and whatever characters it
// has. sun_path has room for 107 bytes, and gRPC reads "unix:PATH" as a URI with a list of paths: it decodes %41, cuts at ? and
// #, splits at commas. Other paths are reached through a descriptor of their folder: /proc/self/fd/7/control.sock.
//
// Invariant: the short form holds in this process, as long as the object lives.
//
// Thread safety: values.
#include <sys/un.h>

#include <filesystem>
#include <string>

namespace fusedbun::control {

class SocketPath {
 public:
  /// Throws UnavailableError if the path needs its folder and that cannot be opened.
  explicit SocketPath(const std::filesystem::path& path);
  ~SocketPath();
  SocketPath(const SocketPath&) = delete;  // owns a descriptor

  sockaddr_un for_kernel() const;
  /// "unix:/runs/a/control.sock"
  std::string for_grpc() const;

 private:
  std::string reachable_;
  int folder_ = -1;
};

}  // namespace fusedbun::control

#pragma once
// ListenAddress: where a job's control plane listens, and whether that place is free. A Unix socket in the run folder by
// default; TCP off loopback is for those who encrypt, or say that they do not mind.
//
// Thread safety: values and functions without state.
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace fusedbun::control {

struct ListenAddress {
  std::filesystem::path socket;  ///< empty: TCP
  std::string host;              ///< "127.0.0.1", "[::1]": an IP address
  int port = 0;                  ///< 0: any free one

  /// For people: "unix:/runs/a/control.sock", "127.0.0.1:41373".
  std::string text() const;
  /// Only processes of this machine reach it.
  bool is_local() const;
  /// TCP: under which addresses clients reach it, those of this host's loopback first; `of_this_host` are its own. An address
  /// that stands for all interfaces is none of them. Nothing for a socket.
  std::vector<std::string> reachable_under(std::span<const std::string> of_this_host) const;
};

/// Reads `address` ("" or HOST:PORT; "localhost" is 127.0.0.1). The socket is in the run folder, or in the runtime folder if
/// that file system takes no sockets. Throws ConfigError (78) for text that is no address.
ListenAddress choose_address(const std::filesystem::path& run_dir, const std::string& address);

/// Throws UnavailableError (69) if something listens there, naming its pid where the kernel tells it. The socket file of a dead
/// job is removed; a file that is no socket is left alone and is an IoError.
void require_free(const ListenAddress& address);

}  // namespace fusedbun::control

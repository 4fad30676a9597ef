#pragma once
// ListenAddress: where a job's control plane listens, and whether that place is free. A Unix socket in the run folder by
// default; TCP off loopback is for those who encrypt, or say that they do not mind.
//
// Thread safety: values and functions without state.
#include <filesystem>
#include <string>

namespace fusedbun::control {

struct ListenAddress {
  std::filesystem::path socket;  ///< empty: TCP
  std::string host;              ///< "127.0.0.1", "[::1]": an IP address
  int port = 0;                  ///< 0: any free one

  /// As gRPC spells it: "unix:/runs/a/control.sock", "127.0.0.1:41373".
  std::string text() const;
  /// Only processes of this machine reach it.
  bool is_local() const;
};

/// Reads `address` ("" or HOST:PORT; "localhost" is 127.0.0.1). A socket path over 107 bytes, the kernel's limit, or with
/// characters that gRPC reads as more than a path, goes to the runtime folder. Throws ConfigError (78) for text that is no address.
ListenAddress choose_address(const std::filesystem::path& run_dir, const std::string& address);

/// Throws UnavailableError (69) if something listens there, naming its pid where the kernel tells it. The socket file of a dead
/// job is removed; a file that is no socket is left alone and is an IoError.
void require_free(const ListenAddress& address);

}  // namespace fusedbun::control

#pragma once
// Authenticator: who sends a request, and which role that is. Over plaintext everybody who reaches the listener is the same, its owner;
// over TLS the client's certificate says it, and a file of the job says which role each name has.
//
// The file "roles", one name per line, the names being subject alternative names of certificates (DNS name, URI, e-mail or
// IP address):
//
//   # role     name
//   admin      spiffe://cluster/user/ada
//   operator   tuner.example.org
//   viewer     dashboard.example.org
//
// Thread safety: all members, from any thread.
#include <grpcpp/server_context.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <variant>

#include "fusedbun/dist/control/rpc_policy.h"

namespace fusedbun::control {

struct Caller {
  std::string actor;  ///< "uid:0", "loopback", or the certificate's name
  Role role = Role::none;
};

/// Throws ConfigError "name:line: ..." for what is no line of the above.
std::map<std::string, Role> parse_roles(std::string_view text, const std::string& name);

class Authenticator {
 public:
  /// Everybody is this one, who shows the token as "authorization: Bearer TOKEN" in the call's metadata; empty: none is asked for.
  explicit Authenticator(std::string actor, std::string token = {});
  /// Certificates decide. Reads the file, and again when it has changed; one that cannot be read then leaves the roles as they
  /// were. Throws ConfigError, DataError.
  explicit Authenticator(std::filesystem::path roles_file);

  /// Are there several?
  bool tells_apart() const { return !roles_file_.empty(); }
  /// UNAUTHENTICATED without the token, or without a certificate that has a name; role none for a name that the file does not
  /// have.
  std::variant<Caller, changes::Refusal> identify(const grpc::ServerContext& context);

 private:
  Role role_of(const std::string& name);
  void read_again_if_changed();

  bool shows_token(const grpc::ServerContext& context) const;

  const std::string owner_;
  const std::string token_;
  const std::filesystem::path roles_file_;
  std::mutex mutex_;
  std::map<std::string, Role> roles_;
  std::filesystem::file_time_type written_at_{};  ///< of the file that was read
};

}  // namespace fusedbun::control

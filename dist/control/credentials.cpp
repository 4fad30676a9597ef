#include "fusedbun/dist/control/credentials.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <unistd.h>

#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

namespace fs = std::filesystem;
using grpc::experimental::FileWatcherCertificateProvider;

void require_readable(const fs::path& file) {
  FUSEDBUN_REQUIRE(::access(file.c_str(), R_OK) == 0, ConfigError,
                   "cannot read " + file.string() + ", which TLS of the control plane needs");
}

void require_private(const fs::path& key) {
  constexpr auto kOthers = fs::perms::group_all | fs::perms::others_all;
  FUSEDBUN_REQUIRE((fs::status(key).permissions() & kOthers) == fs::perms::none, PermissionError,
                   key.string() + " may be read by others: chmod 600 it");
}

/// `who` is "server" or "client".
std::shared_ptr<FileWatcherCertificateProvider> watch(const fs::path& folder,
                                                      const std::string& who) {
  const fs::path key = folder / (who + ".key");
  const fs::path certificate = folder / (who + ".pem");
  const fs::path authority = folder / "ca.pem";
  for (const fs::path& file : {key, certificate, authority}) require_readable(file);
  require_private(key);
  return std::make_shared<FileWatcherCertificateProvider>(key, certificate, authority,
                                                          kCertificateSeconds);
}

}  // namespace

std::shared_ptr<grpc::ServerCredentials> server_credentials(const fs::path& folder) {
  grpc::experimental::TlsServerCredentialsOptions options(watch(folder, "server"));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> client_credentials(const fs::path& folder) {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(watch(folder, "client"));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace fusedbun::control

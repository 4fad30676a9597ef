#include "fusedbun/dist/control/credentials.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#ifdef FUSEDBUN_HAS_OPENSSL
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#endif
#include <arpa/inet.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

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

#ifdef FUSEDBUN_HAS_OPENSSL
std::string text_of(const ASN1_STRING* value) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
          static_cast<size_t>(ASN1_STRING_length(value))};
}

std::string ip_text(const ASN1_OCTET_STRING* address) {
  char text[INET6_ADDRSTRLEN] = {};
  const int family = ASN1_STRING_length(address) == 4 ? AF_INET : AF_INET6;
  ::inet_ntop(family, ASN1_STRING_get0_data(address), text, sizeof text);
  return text;
}

/// Of hosts, in the order of the certificate.
std::vector<std::string> names_in(const fs::path& certificate) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(certificate.c_str(), "re"),
                                                   std::fclose);
  if (!file) return {};
  const std::unique_ptr<X509, void (*)(X509*)> x509(
      PEM_read_X509(file.get(), nullptr, nullptr, nullptr), X509_free);
  if (!x509) return {};
  const std::unique_ptr<GENERAL_NAMES, void (*)(GENERAL_NAMES*)> all(
      static_cast<GENERAL_NAMES*>(
          X509_get_ext_d2i(x509.get(), NID_subject_alt_name, nullptr, nullptr)),
      GENERAL_NAMES_free);
  std::vector<std::string> names;
  for (int i = 0; all && i < sk_GENERAL_NAME_num(all.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(all.get(), i);
    if (name->type == GEN_DNS) names.push_back(text_of(name->d.dNSName));
    if (name->type == GEN_IPADD) names.push_back(ip_text(name->d.iPAddress));
  }
  return names;
}
#endif

}  // namespace

std::string server_name(const fs::path& folder) {
#ifdef FUSEDBUN_HAS_OPENSSL
  std::vector<std::string> names = names_in(folder / "server.pem");
  std::erase_if(names, [](const std::string& name) { return name.starts_with("*"); });
  if (std::ranges::find(names, "localhost") != names.end()) return "localhost";
  return names.empty() ? std::string() : names.front();
#else
  static_cast<void>(folder);
  return {};
#endif
}

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

#pragma once
// Credentials: encryption and certificates of the control plane, from files that may change while the job runs.
//
// A folder for a server has ca.pem (who signs clients), server.pem, server.key and roles (authenticator.h); one for a client has ca.pem
// (who signs servers), client.pem and client.key. deploy/control_certificates.sh makes both.
//
// Thread safety: functions without state.
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <filesystem>
#include <memory>
#include <string>

namespace fusedbun::control {

/// How soon a file that has changed is used for new connections.
inline constexpr unsigned kCertificateSeconds = 2;

/// TLS that asks every client for a certificate. Throws ConfigError (78) for a folder that lacks a file, PermissionError (77) for
/// a key that others may read.
std::shared_ptr<grpc::ServerCredentials> server_credentials(const std::filesystem::path& folder);
/// A host name or address that the certificate in `folder`/server.pem holds, localhost if it is among them: what clients may check
/// it against, under whichever address they call. Empty if there is none, or in a build without OpenSSL.
std::string server_name(const std::filesystem::path& folder);
/// The other end; the server's certificate must name the host that the client has called.
std::shared_ptr<grpc::ChannelCredentials> client_credentials(const std::filesystem::path& folder);

}  // namespace fusedbun::control

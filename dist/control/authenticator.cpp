#include "fusedbun/dist/control/authenticator.h"

#include <grpc/grpc_security_constants.h>

#include <algorithm>
#include <chrono>
#include <sstream>
#include <string_view>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_schedule.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::control {
namespace {

/// The actors of changes that come without a certificate.
bool is_reserved(const std::string& name) {
  return name.starts_with("uid:") || name == "loopback" || name == "anybody" ||
         name == changes::kActorOfFile;
}

}  // namespace

std::map<std::string, Role> parse_roles(std::string_view text, const std::string& name) {
  std::map<std::string, Role> roles;
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line.substr(0, line.find('#')));
    std::string role_word, who, more;
    if (!(words >> role_word)) continue;
    const auto role = role_named(role_word);
    FUSEDBUN_REQUIRE(role && (words >> who) && !(words >> more), ConfigError,
                     name + ":" + std::to_string(number) +
                         ": write one of viewer, operator, admin, and one name");
    FUSEDBUN_REQUIRE(!is_reserved(who), ConfigError,
                     name + ":" + std::to_string(number) + ": '" + who +
                         "' is how the log of changes calls somebody else: give the certificate "
                         "another name");
    FUSEDBUN_REQUIRE(roles.emplace(who, *role).second, ConfigError,
                     name + ":" + std::to_string(number) + ": " + who + " has a role already");
  }
  return roles;
}

Authenticator::Authenticator(std::string actor, std::string token)
    : owner_(std::move(actor)), token_(std::move(token)) {}

Authenticator::Authenticator(std::filesystem::path roles_file)
    : roles_file_(std::move(roles_file)) {
  roles_ = parse_roles(run_folder::read_text_file(roles_file_), roles_file_.string());
  written_at_ = std::filesystem::last_write_time(roles_file_);
}

bool Authenticator::shows_token(const grpc::ServerContext& context) const {
  const auto [first, last] = context.client_metadata().equal_range("authorization");
  const std::string expected = "Bearer " + token_;
  return std::any_of(first, last, [&](const auto& entry) {
    // In the same time for every wrong one, so that it cannot be guessed letter by letter.
    const std::string_view shown(entry.second.data(), entry.second.size());
    unsigned difference = shown.size() == expected.size() ? 0 : 1;
    for (size_t i = 0; i < std::min(shown.size(), expected.size()); ++i)
      difference |= static_cast<unsigned char>(shown[i] ^ expected[i]);
    return difference == 0;
  });
}

std::variant<Caller, changes::Refusal> Authenticator::identify(const grpc::ServerContext& context) {
  if (!token_.empty() && !shows_token(context)) {
    return changes::Refusal{changes::RefusalKind::unauthenticated,
                            "NO_IDENTITY",
                            "the call does not show the job's token: it is in control.json of the "
                            "run folder, so say --run-dir, or send it as metadata 'authorization: "
                            "Bearer TOKEN'",
                            {}};
  }
  if (roles_file_.empty()) return Caller{owner_, Role::admin};
  const auto certificate = context.auth_context();
  Caller caller;
  if (certificate && certificate->IsPeerAuthenticated()) {
    for (const grpc::string_ref& value :
         certificate->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
      const std::string name(value.data(), value.size());
      if (has_control_characters(name)) continue;  // people read it in their terminals
      const Role role = role_of(name);
      if (caller.actor.empty() || role > caller.role) caller = {name, role};
    }
  }
  if (caller.actor.empty()) {
    return changes::Refusal{changes::RefusalKind::unauthenticated,
                            "NO_IDENTITY",
                            "the client has shown no certificate with a name",
                            {}};
  }
  return caller;
}

Role Authenticator::role_of(const std::string& name) {
  const std::lock_guard lock(mutex_);
  read_again_if_changed();
  const auto found = roles_.find(name);
  return found == roles_.end() ? Role::none : found->second;
}

void Authenticator::read_again_if_changed() {
  std::error_code error;
  const auto written_at = std::filesystem::last_write_time(roles_file_, error);
  if (error) return;
  // Who writes a file may write it twice within a tick of the file system's clock; one that is young is read each time.
  const bool is_young =
      std::filesystem::file_time_type::clock::now() - written_at < std::chrono::seconds(2);
  if (written_at == written_at_ && !is_young) return;
  written_at_ = written_at;
  try {
    roles_ = parse_roles(run_folder::read_text_file(roles_file_), roles_file_.string());
  } catch (const Error&) {
    // Half written, or wrong: who had a role keeps it until the file is right.
  }
}

}  // namespace fusedbun::control

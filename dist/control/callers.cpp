#include "fusedbun/dist/control/callers.h"

#include <grpc/grpc_security_constants.h>

#include <sstream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::control {
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
    FUSEDBUN_REQUIRE(roles.emplace(who, *role).second, ConfigError,
                     name + ":" + std::to_string(number) + ": " + who + " has a role already");
  }
  return roles;
}

Callers::Callers(std::string actor) : owner_(std::move(actor)) {}

Callers::Callers(std::filesystem::path roles_file) : roles_file_(std::move(roles_file)) {
  roles_ = parse_roles(run_folder::read_text_file(roles_file_), roles_file_.string());
  read_at_ = std::filesystem::last_write_time(roles_file_);
}

std::variant<Caller, changes::Refusal> Callers::identify(const grpc::ServerContext& context) {
  if (roles_file_.empty()) return Caller{owner_, Role::admin};
  const auto certificate = context.auth_context();
  Caller caller;
  if (certificate && certificate->IsPeerAuthenticated()) {
    for (const grpc::string_ref& value :
         certificate->FindPropertyValues(GRPC_X509_SAN_PROPERTY_NAME)) {
      const std::string name(value.data(), value.size());
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

Role Callers::role_of(const std::string& name) {
  const std::lock_guard lock(mutex_);
  read_again_if_changed();
  const auto found = roles_.find(name);
  return found == roles_.end() ? Role::none : found->second;
}

void Callers::read_again_if_changed() {
  std::error_code error;
  const auto written_at = std::filesystem::last_write_time(roles_file_, error);
  if (error || written_at == read_at_) return;
  read_at_ = written_at;
  try {
    roles_ = parse_roles(run_folder::read_text_file(roles_file_), roles_file_.string());
  } catch (const Error&) {
    // Half written, or wrong: who had a role keeps it until the file is right.
  }
}

}  // namespace fusedbun::control

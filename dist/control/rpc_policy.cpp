#include "fusedbun/dist/control/rpc_policy.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"

namespace fusedbun::control {

extern const char* const kRpcPolicyText;  // rpc_policy.csv, by CMakeLists.txt

namespace {

using changes::Refusal;
using changes::RefusalKind;

constexpr std::string_view kRoles[] = {"none", "viewer", "operator", "admin"};
constexpr size_t kRpcs = static_cast<size_t>(Rpc::dump_diagnostics) + 1;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

Refusal refusal_of(const std::string& cell, const std::string& call) {
  if (cell == "UNAVAILABLE STARTING") {
    return {RefusalKind::unavailable,
            "STARTING",
            "the job is starting and does not take " + call + " yet: try again",
            {}};
  }
  if (cell == "UNAVAILABLE DRAINING") {
    return {RefusalKind::unavailable,
            "DRAINING",
            "the job is about to leave and does not take " + call + " any more",
            {}};
  }
  if (cell == "UNAVAILABLE PAUSED") {
    return {RefusalKind::unavailable,
            "PAUSED",
            "the job is paused and takes no " + call + " until it is resumed",
            {}};
  }
  FUSEDBUN_ASSERT(cell == "FAILED_PRECONDITION JOB_ENDED",
                  "rpc_policy.csv has the refusal " + cell);
  return {RefusalKind::failed_precondition, "JOB_ENDED", "the job has ended", {}};
}

std::vector<RpcPolicy> read_policies() {
  std::vector<RpcPolicy> policies;
  std::vector<std::string> lines = split(kRpcPolicyText, '\n');
  FUSEDBUN_ASSERT(
      lines.size() == kRpcs + 1 && lines[0] == "call,role,STARTING,RUNNING,PAUSED,DRAINING,ENDED",
      "rpc_policy.csv has a line for each call");
  for (size_t i = 0; i < kRpcs; ++i) {
    const std::vector<std::string> cells = split(lines[i + 1], ',');
    RpcPolicy policy{.rpc = static_cast<Rpc>(i), .name = cells.at(0)};
    const auto role = role_named(cells.at(1));
    FUSEDBUN_ASSERT(role && cells.size() == 2 + policy.refusals.size(),
                    "rpc_policy.csv: " + lines[i + 1]);
    policy.least = *role;
    for (size_t state = 0; state < policy.refusals.size(); ++state) {
      if (cells[state + 2] != "OK")
        policy.refusals[state] = refusal_of(cells[state + 2], policy.name);
    }
    policies.push_back(std::move(policy));
  }
  return policies;
}

}  // namespace

std::optional<Role> role_named(std::string_view name) {
  const auto found = std::ranges::find(kRoles, name);
  if (found == std::end(kRoles) || found == std::begin(kRoles)) return std::nullopt;
  return static_cast<Role>(found - std::begin(kRoles));
}

std::string_view name_of(Role role) {
  return kRoles[static_cast<size_t>(role)];
}

std::span<const RpcPolicy> rpc_policies() {
  static const std::vector<RpcPolicy> policies = read_policies();
  return policies;
}

const RpcPolicy& policy_of(Rpc rpc) {
  return rpc_policies()[static_cast<size_t>(rpc)];
}

std::optional<Refusal> refused_for(Rpc rpc, Role role) {
  const RpcPolicy& policy = policy_of(rpc);
  if (role >= policy.least) return std::nullopt;
  return Refusal{RefusalKind::permission_denied,
                 "ROLE_TOO_LOW",
                 policy.name + " requires the role " + std::string(name_of(policy.least)) +
                     "; you have the role " + std::string(name_of(role)),
                 {{"role", std::string(name_of(role))}}};
}

std::optional<Refusal> refused_in(Rpc rpc, JobState state) {
  return policy_of(rpc).refusals[is_final(state) ? 4 : static_cast<size_t>(state)];
}

}  // namespace fusedbun::control

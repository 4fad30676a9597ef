#include "fusedbun/dist/control/rpc_policy.h"

#include <algorithm>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

using changes::Refusal;
using changes::RefusalKind;

constexpr RpcPolicy kPolicies[] = {
    {Rpc::get_job, "GetJob", Role::viewer, When::always},
    {Rpc::watch_job, "WatchJob", Role::viewer, When::always},
    {Rpc::list_ranks, "ListRanks", Role::viewer, When::always},
    {Rpc::get_hyperparameters, "GetHyperparameters", Role::viewer, When::always},
    {Rpc::list_hyperparameter_specs, "ListHyperparameterSpecs", Role::viewer, When::always},
    {Rpc::create_change, "CreateChange", Role::operator_, When::running},
    {Rpc::get_change, "GetChange", Role::viewer, When::always},
    {Rpc::list_changes, "ListChanges", Role::viewer, When::always},
    {Rpc::cancel_change, "CancelChange", Role::operator_, When::running},
    {Rpc::create_checkpoint, "CreateCheckpoint", Role::operator_, When::never},
    {Rpc::get_checkpoint, "GetCheckpoint", Role::viewer, When::never},
    {Rpc::list_checkpoints, "ListCheckpoints", Role::viewer, When::never},
    {Rpc::drain_job, "DrainJob", Role::admin, When::not_ended},
    {Rpc::stop_job, "StopJob", Role::admin, When::not_ended},
    {Rpc::stream_metrics, "StreamMetrics", Role::viewer, When::always},
    {Rpc::pause_job, "PauseJob", Role::operator_, When::never},
    {Rpc::resume_job, "ResumeJob", Role::operator_, When::never},
    {Rpc::dump_diagnostics, "DumpDiagnostics", Role::admin, When::never},
};

constexpr std::string_view kRoles[] = {"none", "viewer", "operator", "admin"};

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
  return kPolicies;
}

const RpcPolicy& policy_of(Rpc rpc) {
  const RpcPolicy& policy = kPolicies[static_cast<size_t>(rpc)];
  FUSEDBUN_ASSERT(policy.rpc == rpc, "the table is in the order of its enumeration");
  return policy;
}

std::optional<Refusal> refused_for(Rpc rpc, Role role) {
  const RpcPolicy& policy = policy_of(rpc);
  if (role >= policy.least) return std::nullopt;
  return Refusal{RefusalKind::permission_denied,
                 "ROLE_TOO_LOW",
                 std::string(policy.name) + " takes the role " +
                     std::string(name_of(policy.least)) + "; you have the role " +
                     std::string(name_of(role)),
                 {{"role", std::string(name_of(role))}}};
}

std::optional<Refusal> refused_in(Rpc rpc, JobState state) {
  const RpcPolicy& policy = policy_of(rpc);
  if (policy.when == When::never) {
    return Refusal{RefusalKind::unimplemented,
                   "NOT_IN_THIS_VERSION",
                   std::string(policy.name) +
                       " is in the contract, but this version of fusedbun does not serve it",
                   {}};
  }
  if (policy.when == When::always) return std::nullopt;
  if (is_final(state)) {
    return Refusal{RefusalKind::failed_precondition, "JOB_ENDED", "the job has ended", {}};
  }
  if (policy.when == When::not_ended || state == JobState::running) return std::nullopt;
  if (state == JobState::starting) {
    return Refusal{RefusalKind::unavailable,
                   "STARTING",
                   "the job is starting and takes no changes yet: try again",
                   {}};
  }
  return Refusal{RefusalKind::unavailable,
                 "DRAINING",
                 "the job is about to leave and takes no more changes",
                 {}};
}

}  // namespace fusedbun::control

#pragma once
// RpcPolicy: who may call what, and what is answered in which state of the job. rpc_policy.csv says it, one call a line in the
// order of the contract: the lowest role, and for each state OK or the refusal, its gRPC code and its reason. ENDED is
// SUCCEEDED, FAILED and STOPPED, while the process lives. The service is compiled from that file, and the README shows it.
//
// Thread safety: values and functions without state.
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "fusedbun/dist/changes/change_request.h"
#include "fusedbun/dist/control/control_server.h"

namespace fusedbun::control {

/// Each may do what those before it may.
enum class Role : uint8_t { none, viewer, operator_, admin };
/// "viewer"; nothing for other words.
std::optional<Role> role_named(std::string_view name);
std::string_view name_of(Role role);

/// In the order of the contract.
enum class Rpc : uint8_t {
  get_job,
  watch_job,
  list_ranks,
  get_hyperparameters,
  list_hyperparameter_specs,
  create_change,
  get_change,
  list_changes,
  cancel_change,
  create_checkpoint,
  get_checkpoint,
  list_checkpoints,
  drain_job,
  stop_job,
  stream_metrics,
  pause_job,
  resume_job,
  dump_diagnostics,
};

struct RpcPolicy {
  Rpc rpc{};
  std::string name;  ///< the contract's
  Role least = Role::admin;
  /// Starting, running, paused, draining, ended; empty: it is answered.
  std::array<std::optional<changes::Refusal>, 5> refusals = {};
};
std::span<const RpcPolicy> rpc_policies();
const RpcPolicy& policy_of(Rpc rpc);

/// PERMISSION_DENIED if the role is too low for it.
std::optional<changes::Refusal> refused_for(Rpc rpc, Role role);
/// Why it is not answered while the job is in this state.
std::optional<changes::Refusal> refused_in(Rpc rpc, JobState state);

}  // namespace fusedbun::control

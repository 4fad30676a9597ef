#pragma once
// RpcPolicy: who may call what, and in which state of the job. One table, which the service obeys, the tests read, and the
// README shows.
//
// Thread safety: values and functions without state.
#include <cstdint>
#include <optional>
#include <span>
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

enum class When : uint8_t {
  always,     ///< while the process lives
  running,    ///< UNAVAILABLE before and while the job leaves, FAILED_PRECONDITION after
  not_ended,  ///< FAILED_PRECONDITION after the job has ended
  never,      ///< UNIMPLEMENTED: in the contract, not in this version
};

struct RpcPolicy {
  Rpc rpc;
  std::string_view name;  ///< the contract's
  Role least;
  When when;
};
std::span<const RpcPolicy> rpc_policies();
const RpcPolicy& policy_of(Rpc rpc);

/// PERMISSION_DENIED if the role is too low for it.
std::optional<changes::Refusal> refused_for(Rpc rpc, Role role);
/// Why it is not answered while the job is in this state.
std::optional<changes::Refusal> refused_in(Rpc rpc, JobState state);

}  // namespace fusedbun::control

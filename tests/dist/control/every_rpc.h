#pragma once
// One valid request of every RPC of the contract, for tests that go through all of them.
//
// Thread safety: functions without state.
#include <grpcpp/support/status.h>

#include <memory>
#include <span>
#include <string_view>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/control/rpc_policy.h"

namespace fusedbun::control {

/// Calls `rpc`; GetChange names change 1, CancelChange `cancelled`, CreateChange asks for step 900,000. A stream that stays
/// open for a while is OK. Every call has a deadline.
grpc::Status call(v1::TrainingControl::Stub& stub, Rpc rpc, int64_t cancelled = 1);

/// What each call is to be answered, written down here by hand: tests compare the server with this, and not with the table that
/// the server is compiled from.
struct ExpectedPolicy {
  const char* call;
  Rpc rpc;
  Role least;
  /// Reasons of the refusals in STARTING, RUNNING, DRAINING, and after the end; empty: it is answered.
  const char* reasons[5];
};
std::span<const ExpectedPolicy> expected_policies();
/// The gRPC code that a refusal of the table with this reason has; OK for an empty one.
grpc::StatusCode code_of_reason(std::string_view reason);

}  // namespace fusedbun::control

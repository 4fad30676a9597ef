#pragma once
// One valid request of every RPC of the contract, for tests that go through all of them.
//
// Thread safety: functions without state.
#include <memory>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/control/rpc_policy.h"

namespace fusedbun::control {

/// Calls `rpc`; GetChange names change 1, CancelChange `cancelled`, CreateChange asks for step 1,000,000. A stream that stays
/// open for a while is OK. Every call has a deadline.
grpc::Status call(v1::TrainingControl::Stub& stub, Rpc rpc, int64_t cancelled = 1);

}  // namespace fusedbun::control

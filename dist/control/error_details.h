#pragma once
// How a refusal travels: a gRPC status whose details say, for programs, which refusal it is.
//
// Thread safety: functions without state.
#include <grpcpp/support/status.h>

#include <map>
#include <optional>
#include <string>

#include "fusedbun/dist/changes/change_request.h"

namespace fusedbun::control {

grpc::Status to_status(const changes::Refusal& refusal);

struct StatusReason {
  std::string reason;  ///< "ETAG_MISMATCH"; empty if the status carries none
  std::map<std::string, std::string> metadata;
};
StatusReason reason_of(const grpc::Status& status);

}  // namespace fusedbun::control

#include "fusedbun/dist/control/error_details.h"

#include "fusedbun/control/v1/error_details.pb.h"
#include "fusedbun/core/error.h"

namespace fusedbun::control {
namespace {

constexpr const char* kErrorInfoUrl = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr const char* kDomain = "fusedbun.control.v1";

grpc::StatusCode code_of(changes::RefusalKind kind) {
  switch (kind) {
    case changes::RefusalKind::invalid_argument:
      return grpc::StatusCode::INVALID_ARGUMENT;
    case changes::RefusalKind::not_found:
      return grpc::StatusCode::NOT_FOUND;
    case changes::RefusalKind::failed_precondition:
      return grpc::StatusCode::FAILED_PRECONDITION;
    case changes::RefusalKind::out_of_range:
      return grpc::StatusCode::OUT_OF_RANGE;
    case changes::RefusalKind::aborted:
      return grpc::StatusCode::ABORTED;
    case changes::RefusalKind::resource_exhausted:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case changes::RefusalKind::unavailable:
      return grpc::StatusCode::UNAVAILABLE;
    case changes::RefusalKind::unauthenticated:
      return grpc::StatusCode::UNAUTHENTICATED;
    case changes::RefusalKind::permission_denied:
      return grpc::StatusCode::PERMISSION_DENIED;
  }
  FUSEDBUN_ASSERT(false, "every kind of refusal has a status code");
}

}  // namespace

grpc::Status to_status(const changes::Refusal& refusal) {
  v1::ErrorInfo info;
  info.set_reason(refusal.reason);
  info.set_domain(kDomain);
  for (const auto& [key, value] : refusal.metadata) (*info.mutable_metadata())[key] = value;
  v1::StatusDetails details;
  const grpc::StatusCode code = code_of(refusal.kind);
  details.set_code(code);
  details.set_message(refusal.message);
  google::protobuf::Any* packed = details.add_details();
  packed->set_type_url(kErrorInfoUrl);  // PackFrom would write our message's own name
  packed->set_value(info.SerializeAsString());
  return grpc::Status(code, refusal.message, details.SerializeAsString());
}

StatusReason reason_of(const grpc::Status& status) {
  v1::StatusDetails details;
  if (!details.ParseFromString(status.error_details())) return {};
  for (const google::protobuf::Any& packed : details.details()) {
    v1::ErrorInfo info;
    if (packed.type_url() == kErrorInfoUrl && info.ParseFromString(packed.value())) {
      return {info.reason(), {info.metadata().begin(), info.metadata().end()}};
    }
  }
  return {};
}

}  // namespace fusedbun::control

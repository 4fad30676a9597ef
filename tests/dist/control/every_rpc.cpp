#include "fusedbun/tests/dist/control/every_rpc.h"

#include <grpcpp/client_context.h>

#include <chrono>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

constexpr std::chrono::seconds kDeadline{10};
constexpr std::chrono::milliseconds kStreamTime{100};

using Stub = v1::TrainingControl::Stub;

template <class Request, class Reply>
grpc::Status unary(Stub& stub,
                   grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                   const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  Reply reply;
  return (stub.*method)(&context, request, &reply);
}

template <class Request, class Message>
grpc::Status stream(Stub& stub,
                    std::unique_ptr<grpc::ClientReader<Message>> (Stub::*method)(
                        grpc::ClientContext*, const Request&),
                    const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kStreamTime);
  const auto reader = (stub.*method)(&context, request);
  for (Message message; reader->Read(&message);) {
  }
  const grpc::Status status = reader->Finish();
  const bool stayed_open = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
  return stayed_open ? grpc::Status::OK : status;
}

template <class Request>
Request of_job() {
  Request request;
  const auto* descriptor = request.GetDescriptor();
  const auto* field = descriptor->FindFieldByName("parent");
  if (field == nullptr) field = descriptor->FindFieldByName("name");
  request.GetReflection()->SetString(&request, field, "jobs/-");
  return request;
}

v1::CreateChangeRequest change_request() {
  auto request = of_job<v1::CreateChangeRequest>();
  request.set_etag("*");
  request.mutable_change()->set_apply_at_step(900'000);
  v1::GroupPatch& patch = *request.mutable_change()->add_patches();
  patch.set_group("*");
  patch.mutable_values()->set_eps(1e-6);
  return request;
}

/// Of a job without heartbeats, in which DumpDiagnostics reaches nobody.
constexpr ExpectedPolicy kExpected[] = {
    {"GetJob", Rpc::get_job, Role::viewer, {"", "", "", "", ""}},
    {"WatchJob", Rpc::watch_job, Role::viewer, {"", "", "", "", ""}},
    {"ListRanks", Rpc::list_ranks, Role::viewer, {"", "", "", "", ""}},
    {"GetHyperparameters", Rpc::get_hyperparameters, Role::viewer, {"", "", "", "", ""}},
    {"ListHyperparameterSpecs", Rpc::list_hyperparameter_specs, Role::viewer, {"", "", "", "", ""}},
    {"CreateChange",
     Rpc::create_change,
     Role::operator_,
     {"STARTING", "", "", "DRAINING", "JOB_ENDED"}},
    {"GetChange", Rpc::get_change, Role::viewer, {"", "", "", "", ""}},
    {"ListChanges", Rpc::list_changes, Role::viewer, {"", "", "", "", ""}},
    {"CancelChange",
     Rpc::cancel_change,
     Role::operator_,
     {"STARTING", "", "", "DRAINING", "JOB_ENDED"}},
    {"CreateCheckpoint",
     Rpc::create_checkpoint,
     Role::operator_,
     {"STARTING", "", "PAUSED", "DRAINING", "JOB_ENDED"}},
    {"GetCheckpoint", Rpc::get_checkpoint, Role::viewer, {"", "", "", "", ""}},
    {"ListCheckpoints", Rpc::list_checkpoints, Role::viewer, {"", "", "", "", ""}},
    {"DrainJob", Rpc::drain_job, Role::admin, {"", "", "", "", "JOB_ENDED"}},
    {"StopJob", Rpc::stop_job, Role::admin, {"", "", "", "", "JOB_ENDED"}},
    {"StreamMetrics", Rpc::stream_metrics, Role::viewer, {"", "", "", "", ""}},
    {"PauseJob", Rpc::pause_job, Role::operator_, {"STARTING", "", "", "DRAINING", "JOB_ENDED"}},
    {"ResumeJob", Rpc::resume_job, Role::operator_, {"STARTING", "", "", "DRAINING", "JOB_ENDED"}},
    {"DumpDiagnostics",
     Rpc::dump_diagnostics,
     Role::admin,
     {"NO_HEARTBEATS", "NO_HEARTBEATS", "NO_HEARTBEATS", "NO_HEARTBEATS", "NO_HEARTBEATS"}},
};

}  // namespace

std::span<const ExpectedPolicy> expected_policies() {
  return kExpected;
}

grpc::StatusCode code_of_reason(std::string_view reason) {
  if (reason.empty()) return grpc::StatusCode::OK;
  if (reason == "STARTING" || reason == "PAUSED" || reason == "DRAINING")
    return grpc::StatusCode::UNAVAILABLE;
  FUSEDBUN_ASSERT(reason == "JOB_ENDED" || reason == "NO_HEARTBEATS",
                  "every reason of the table has a code");
  return grpc::StatusCode::FAILED_PRECONDITION;
}

grpc::Status call(Stub& stub, Rpc rpc, int64_t cancelled) {
  switch (rpc) {
    case Rpc::get_job:
      return unary(stub, &Stub::GetJob, of_job<v1::GetJobRequest>());
    case Rpc::watch_job:
      return stream(stub, &Stub::WatchJob, of_job<v1::WatchJobRequest>());
    case Rpc::list_ranks:
      return unary(stub, &Stub::ListRanks, of_job<v1::ListRanksRequest>());
    case Rpc::get_hyperparameters:
      return unary(stub, &Stub::GetHyperparameters, of_job<v1::GetHyperparametersRequest>());
    case Rpc::list_hyperparameter_specs:
      return unary(stub, &Stub::ListHyperparameterSpecs,
                   of_job<v1::ListHyperparameterSpecsRequest>());
    case Rpc::create_change:
      return unary(stub, &Stub::CreateChange, change_request());
    case Rpc::get_change: {
      v1::GetChangeRequest request;
      request.set_name("jobs/-/changes/1");
      return unary(stub, &Stub::GetChange, request);
    }
    case Rpc::list_changes:
      return unary(stub, &Stub::ListChanges, of_job<v1::ListChangesRequest>());
    case Rpc::cancel_change: {
      v1::CancelChangeRequest request;
      request.set_name("jobs/-/changes/" + std::to_string(cancelled));
      return unary(stub, &Stub::CancelChange, request);
    }
    case Rpc::create_checkpoint:
      return unary(stub, &Stub::CreateCheckpoint, of_job<v1::CreateCheckpointRequest>());
    case Rpc::get_checkpoint: {
      v1::GetCheckpointRequest request;
      request.set_name("jobs/-/checkpoints/" + std::to_string(kFoundCheckpoint));
      return unary(stub, &Stub::GetCheckpoint, request);
    }
    case Rpc::list_checkpoints:
      return unary(stub, &Stub::ListCheckpoints, of_job<v1::ListCheckpointsRequest>());
    case Rpc::drain_job:
      return unary(stub, &Stub::DrainJob, of_job<v1::DrainJobRequest>());
    case Rpc::stop_job:
      return unary(stub, &Stub::StopJob, of_job<v1::StopJobRequest>());
    case Rpc::stream_metrics:
      return stream(stub, &Stub::StreamMetrics, of_job<v1::StreamMetricsRequest>());
    case Rpc::pause_job:
      return unary(stub, &Stub::PauseJob, of_job<v1::PauseJobRequest>());
    case Rpc::resume_job:
      return unary(stub, &Stub::ResumeJob, of_job<v1::ResumeJobRequest>());
    case Rpc::dump_diagnostics:
      return unary(stub, &Stub::DumpDiagnostics, of_job<v1::DumpDiagnosticsRequest>());
  }
  FUSEDBUN_ASSERT(false, "every RPC has a request");
}

}  // namespace fusedbun::control

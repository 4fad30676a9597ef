// The RPCs of the contract that this version does not serve.
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {
namespace {

grpc::Status later(const std::string& call) {
  return to_status({plan::RefusalKind::unimplemented,
                    "NOT_IN_THIS_VERSION",
                    call + " is in the contract, but this version of fusedbun does not serve it",
                    {}});
}

}  // namespace

grpc::Status TrainingControlService::CancelChange(Context*, const v1::CancelChangeRequest*,
                                                  v1::Change*) {
  return later("CancelChange");
}

grpc::Status TrainingControlService::CreateCheckpoint(Context*, const v1::CreateCheckpointRequest*,
                                                      v1::Checkpoint*) {
  return later("CreateCheckpoint");
}

grpc::Status TrainingControlService::GetCheckpoint(Context*, const v1::GetCheckpointRequest*,
                                                   v1::Checkpoint*) {
  return later("GetCheckpoint");
}

grpc::Status TrainingControlService::ListCheckpoints(Context*, const v1::ListCheckpointsRequest*,
                                                     v1::ListCheckpointsResponse*) {
  return later("ListCheckpoints");
}

grpc::Status TrainingControlService::PauseJob(Context*, const v1::PauseJobRequest*, v1::Job*) {
  return later("PauseJob");
}

grpc::Status TrainingControlService::ResumeJob(Context*, const v1::ResumeJobRequest*, v1::Job*) {
  return later("ResumeJob");
}

grpc::Status TrainingControlService::DumpDiagnostics(Context*, const v1::DumpDiagnosticsRequest*,
                                                     v1::Diagnostics*) {
  return later("DumpDiagnostics");
}

}  // namespace fusedbun::control

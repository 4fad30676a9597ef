// The RPCs of the contract that this version does not serve. The role is checked all the same.
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {

grpc::Status TrainingControlService::later(Rpc rpc, const Context& context) {
  return std::get<grpc::Status>(admit(rpc, context, {}));
}

grpc::Status TrainingControlService::PauseJob(Context* context, const v1::PauseJobRequest*,
                                              v1::Job*) {
  return later(Rpc::pause_job, *context);
}

grpc::Status TrainingControlService::ResumeJob(Context* context, const v1::ResumeJobRequest*,
                                               v1::Job*) {
  return later(Rpc::resume_job, *context);
}

grpc::Status TrainingControlService::DumpDiagnostics(Context* context,
                                                     const v1::DumpDiagnosticsRequest*,
                                                     v1::Diagnostics*) {
  return later(Rpc::dump_diagnostics, *context);
}

}  // namespace fusedbun::control

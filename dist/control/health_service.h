#pragma once
// What a gRPC server of this process serves beside its own services: health, and reflection only where it is wanted.
//
// Thread safety: any thread.
#include <grpcpp/impl/server_builder_option.h>

#include <memory>
#include <vector>

namespace fusedbun::control {

/// From now on every server that is built serves grpc.health.v1. To be called before a server is built.
void enable_health_service();

/// Linking the plugin switches server reflection on for each server of the process; this takes it away from one. A call of
/// reflection holds a thread for as long as its client likes.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override;
};

}  // namespace fusedbun::control

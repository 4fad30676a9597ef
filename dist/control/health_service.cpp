#include "fusedbun/dist/control/health_service.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>

#include <mutex>
#include <string>

namespace fusedbun::control {

void enable_health_service() {
  static std::once_flag process_once;
  std::call_once(process_once, [] {
    // Held to the end of the process: the last to let go of gRPC waits, up to 10 s, for a write
    // that a client never read, and the end of a job must not.
    grpc_init();
    // A switch that every later server of the process obeys.
    grpc::EnableDefaultHealthCheckService(true);
  });
}

void WithoutReflection::UpdatePlugins(
    std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) {
  const std::string name = grpc::reflection::ProtoServerReflectionPlugin().name();
  std::erase_if(*plugins, [&](const auto& plugin) { return plugin->name() == name; });
}

}  // namespace fusedbun::control

#include "fusedbun/dist/control/health_port.h"

#include <grpc/grpc.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/control/grpc_log.h"
#include "fusedbun/dist/control/health_reporter.h"
#include "fusedbun/dist/control/health_service.h"
#include "fusedbun/dist/control/listen_address.h"

namespace fusedbun::control {
namespace {

constexpr std::chrono::milliseconds kLookInterval{500};
constexpr std::chrono::milliseconds kFarewell{100};
// A probe is one short call: a client that opens more finds little to use up.
constexpr int kRequestBytesMax = 4 << 10;
constexpr int kCallsPerConnectionMax = 8;
constexpr size_t kQuotaBytesMax = 8 << 20;

}  // namespace

class HealthPort::Parts {
 public:
  Parts(int port, std::function<bool()> is_progressing) {
    limit_grpc_log();
    // gRPC serves both families on it.
    const ListenAddress address = choose_address({}, "0.0.0.0:" + std::to_string(port));
    require_free(address);
    enable_health_service();
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kRequestBytesMax);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kCallsPerConnectionMax);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    grpc::ResourceQuota quota("fusedbun.health");
    quota.Resize(kQuotaBytesMax);
    builder.SetResourceQuota(quota);
    builder.SetOption(std::make_unique<WithoutReflection>());
    builder.RegisterCallbackGenericService(&everything_else_);
    builder.AddListeningPort(address.text(), grpc::InsecureServerCredentials(), &port_);
    server_ = builder.BuildAndStart();
    FUSEDBUN_REQUIRE(server_ != nullptr && port_ != 0, UnavailableError,
                     "cannot listen on " + address.text() + " of " + host_name() +
                         " for health: another process was faster, or it is not allowed");
    reporter_ = std::make_unique<HealthReporter>(
        *server_->GetHealthCheckService(),
        HealthReporter::Sources{.names = {{kProgressHealthName, std::move(is_progressing)}}},
        kLookInterval);
    reporter_->update();  // a call may have come before it was there
  }
  ~Parts() {
    reporter_->stop();
    server_->Shutdown(std::chrono::system_clock::now() + kFarewell);
    server_->Wait();
  }
  int port() const { return port_; }

 private:
  int port_ = 0;
  /// Answers UNIMPLEMENTED. The health service is the server's own, and one with no other service does not start.
  grpc::CallbackGenericService everything_else_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HealthReporter> reporter_;
};

HealthPort::HealthPort(int port, std::function<bool()> is_progressing)
    : parts_(std::make_unique<Parts>(port, std::move(is_progressing))) {}

HealthPort::~HealthPort() = default;

int HealthPort::port() const {
  return parts_->port();
}

}  // namespace fusedbun::control

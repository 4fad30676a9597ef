#include "fusedbun/dist/control/control_server.h"

#include <google/protobuf/util/time_util.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/authenticator.h"
#include "fusedbun/dist/control/credentials.h"
#include "fusedbun/dist/control/grpc_log.h"
#include "fusedbun/dist/control/health_reporter.h"
#include "fusedbun/dist/control/health_service.h"
#include "fusedbun/dist/control/listen_address.h"
#include "fusedbun/dist/control/socket_path.h"
#include "fusedbun/dist/control/training_control_service.h"
#include "fusedbun/dist/run_folder/control_file.h"
#include "fusedbun/dist/run_folder/private_folder.h"

namespace fusedbun::control {
namespace {

constexpr int kMessageBytesMax = 256 << 10;
constexpr int kMetadataBytesMax = 8 << 10;
constexpr int kStreamsPerConnectionMax = 64;
constexpr size_t kMemoryBytesMax = 64 << 20;
// A call holds a thread: 16 streams that watch, 16 that read metrics, the changes that wait for the disk, and as many more, so
// that GetJob, DrainJob and StopJob always find one.
constexpr int kThreadsMax = 2 * TrainingControlService::kStreamsMax +
                            static_cast<int>(changes::ChangeCommitter::kWaitingMax) + 32;
constexpr int kHandshakeMs = 5'000;
constexpr int kIdleMs = 15 * 60'000;
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
constexpr int kClientPingIntervalMinMs = 30'000;
constexpr std::chrono::milliseconds kHealthIntervalMax{500};  ///< a turn is seen within a second
constexpr std::chrono::milliseconds kShutdownGrace{500};
constexpr std::chrono::minutes kWarningInterval{1};

void set_limits(grpc::ServerBuilder& builder, const ControlOptions& options) {
  if (!options.credentials.empty()) {
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               static_cast<int>(options.connection_age.count()));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               static_cast<int>(options.connection_age_grace.count()));
  }
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kClientPingIntervalMinMs);
  // gRPC's default lets a second job listen on the same port and take half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  grpc::ResourceQuota quota("fusedbun.control");
  quota.Resize(kMemoryBytesMax).SetMaxThreads(kThreadsMax);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
}

/// gRPC binds a Unix socket with 0777 & ~umask; there is no moment at which others may open it.
class PrivateUmask {
 public:
  PrivateUmask() : before_(::umask(077)) {}
  ~PrivateUmask() { ::umask(before_); }
  PrivateUmask(const PrivateUmask&) = delete;  // restores once

 private:
  mode_t before_;
};

/// Only the owner can open the socket, and read the token that a port of loopback asks for; over another port it is anybody,
/// unless certificates tell.
std::unique_ptr<Authenticator> authenticator_of(const ListenAddress& address,
                                                const ControlOptions& options) {
  if (!options.credentials.empty())
    return std::make_unique<Authenticator>(options.credentials / "roles");
  if (!address.socket.empty())
    return std::make_unique<Authenticator>("uid:" + std::to_string(::geteuid()));
  if (address.is_local()) return std::make_unique<Authenticator>("loopback", options.token);
  return std::make_unique<Authenticator>(std::string("anybody"));
}

std::shared_ptr<grpc::ServerCredentials> credentials_of(const ControlOptions& options) {
  return options.credentials.empty() ? grpc::InsecureServerCredentials()
                                     : server_credentials(options.credentials);
}

/// Where the job's owner finds a client's credentials, if there are any.
std::string own_credentials(const ControlOptions& options) {
  if (options.credentials.empty()) return {};
  const std::filesystem::path folder = std::filesystem::absolute(options.credentials) / "admin";
  return std::filesystem::exists(folder) ? folder.string() : std::string();
}

/// 32 hexadecimal digits that nobody can guess.
std::string new_token() {
  std::array<unsigned char, 16> bytes{};
  FUSEDBUN_REQUIRE(
      ::getrandom(bytes.data(), bytes.size(), 0) == ssize_t{bytes.size()}, IoError,
      std::string("no random numbers for the control plane's token: ") + std::strerror(errno));
  std::string token;
  for (const unsigned char byte : bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    token += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return token;
}

ControlOptions prepared(ControlOptions options) {
  limit_grpc_log();
  run_folder::make_private_folder(options.run_dir);
  if (options.token.empty()) options.token = new_token();
  return options;
}

ListenAddress free_address(const ControlOptions& options) {
  ListenAddress address = choose_address(options.run_dir, options.address);
  FUSEDBUN_REQUIRE(
      address.is_local() || !options.credentials.empty() || options.insecure, ConfigError,
      "control address '" + options.address +
          "' is not on loopback, and nothing is encrypted: give --control-credentials, or use "
          "127.0.0.1:PORT or the socket in the run folder, and reach it through ssh");
  require_free(address);
  return address;
}

}  // namespace

class ControlServer::Impl {
 public:
  Impl(ControlOptions given, JobDescription job)
      : options_(prepared(std::move(given))),
        address_(free_address(options_)),
        service_(options_, std::move(job), authenticator_of(address_, options_)) {
    service_.on_state_change([this] {
      if (auto* const health = live_health_.load()) health->update();
    });
    listen();
    const auto interval =
        std::clamp(options_.stall_timeout / 4, std::chrono::milliseconds(10), kHealthIntervalMax);
    health_ = std::make_unique<HealthReporter>(
        *server_->GetHealthCheckService(),
        HealthReporter::Sources{
            .names = {{kControlHealthName, [this] { return service_.accepts_changes(); }},
                      {kProgressHealthName, [this] { return service_.is_progressing(); }}},
            .looked =
                [this] {
                  service_.tell_turns();
                  service_.leave_if_overdue();
                }},
        interval);
    live_health_ = health_.get();
    health_->update();  // a call may have come before it was there
    if (options_.credentials.empty() && !address_.is_local()) warn_each_minute();
    run_folder::write_control_file(options_.run_dir, control_file());
  }

  ~Impl() { shutdown(); }

  void shutdown() {
    const std::lock_guard lock(shutdown_mutex_);
    if (is_down_) return;
    is_down_ = true;
    warning_.request_stop();
    run_folder::remove_control_file(options_.run_dir);
    if (health_) health_->stop();
    service_.end_streams();
    server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);  // unlinks the socket
    server_->Wait();
  }

  TrainingControlService& service() { return service_; }
  std::string address() const { return address_.text(); }

 private:
  run_folder::ControlFile control_file() const {
    const bool is_tcp = address_.socket.empty();
    const bool is_plaintext = options_.credentials.empty();
    const bool is_in_run_folder = !is_tcp && address_.socket.parent_path() == folder_of_run();
    run_folder::ControlFile file;
    file.addresses = address_.reachable_under(options_.host_addresses);
    file.address = is_tcp ? file.addresses.front() : address_.text();
    file.socket = is_in_run_folder ? address_.socket.filename().string() : std::string();
    file.token = is_tcp && is_plaintext && address_.is_local() ? options_.token : std::string();
    file.credentials = own_credentials(options_);
    file.tls_name = is_plaintext ? std::string() : server_name(options_.credentials);
    file.run_id = options_.run_id;
    file.place = run_folder::this_process();
    file.start_time = google::protobuf::util::TimeUtil::ToString(
        google::protobuf::util::TimeUtil::GetCurrentTime());
    return file;
  }

  std::filesystem::path folder_of_run() const {
    return (std::filesystem::absolute(options_.run_dir) / "").lexically_normal().parent_path();
  }

  void warn_each_minute() {
    warning_ = std::jthread([this](const std::stop_token& stop) {
      std::mutex mutex;
      std::unique_lock lock(mutex);
      std::condition_variable_any stopped;
      do {
        if (options_.notice) {
          options_.notice(
              "the control plane on " + address_.text() +
              " is not encrypted and accepts requests from anyone (--insecure-control)");
        }
        stopped.wait_for(lock, stop, kWarningInterval, [] { return false; });
      } while (!stop.stop_requested());
    });
  }

  void listen() {
    enable_health_service();
    grpc::ServerBuilder builder;
    set_limits(builder, options_);
    int port = 0;
    if (!address_.socket.empty()) socket_.emplace(address_.socket);
    builder.AddListeningPort(socket_ ? socket_->for_grpc() : address_.text(),
                             credentials_of(options_), &port);
    builder.RegisterService(&service_);
    // Behind the socket there is only the job's owner.
    if (address_.socket.empty()) builder.SetOption(std::make_unique<WithoutReflection>());
    {
      const PrivateUmask umask;
      server_ = builder.BuildAndStart();
    }
    FUSEDBUN_REQUIRE(server_ != nullptr && port != 0, UnavailableError,
                     "cannot listen on " + address_.text() +
                         ": another process was faster, or it is not allowed");
    if (address_.socket.empty()) {
      address_.port = port;
    } else {
      FUSEDBUN_REQUIRE(
          ::chmod(address_.socket.c_str(), 0600) == 0, IoError,
          "cannot make " + address_.socket.string() + " private: " + std::strerror(errno));
    }
  }

  const ControlOptions options_;
  ListenAddress address_;
  std::optional<SocketPath> socket_;  ///< to the end: gRPC unlinks it
  TrainingControlService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<HealthReporter> health_;
  std::atomic<HealthReporter*> live_health_ = nullptr;  ///< for calls that come at once
  std::mutex shutdown_mutex_;
  bool is_down_ = false;
  std::jthread warning_;
};

ControlServer::ControlServer(ControlOptions options, JobDescription job)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(job))) {}

ControlServer::~ControlServer() = default;

changes::ControlPort& ControlServer::port() {
  return impl_->service();
}

void ControlServer::set_state(JobState state, std::string_view reason) {
  impl_->service().set_state(state, reason);
}

int64_t ControlServer::restored_changes() const {
  return impl_->service().restored_changes();
}

changes::LeaveRequest ControlServer::leave_asked() const {
  return impl_->service().leave_asked();
}

void ControlServer::set_ranks(const plan::RankDirectory* ranks) {
  impl_->service().set_ranks(ranks);
}

void ControlServer::set_orders(plan::RankOrders* orders) {
  impl_->service().set_orders(orders);
}

void ControlServer::report_lost_rank(const plan::RankStatus& rank) {
  impl_->service().report_lost_rank(rank);
}

void ControlServer::warn(std::string_view sentence) {
  impl_->service().warn(sentence);
}

void ControlServer::offer_checkpoints(const std::vector<FoundCheckpoint>& found) {
  impl_->service().offer_checkpoints(found);
}
void ControlServer::save_started(int64_t job_step) {
  impl_->service().save_started(job_step);
}
void ControlServer::save_refused(int64_t job_step) {
  impl_->service().save_refused(job_step);
}
void ControlServer::checkpoint_durable(const CheckpointFacts& facts) {
  impl_->service().checkpoint_durable(facts);
}
void ControlServer::save_failed(int64_t job_step, std::string_view problem) {
  impl_->service().save_failed(job_step, problem);
}
void ControlServer::checkpoint_deleted(int64_t job_step) {
  impl_->service().checkpoint_deleted(job_step);
}

void ControlServer::record_metrics(int64_t job_step, std::span<const changes::Metric> metrics) {
  impl_->service().record_metrics(job_step, metrics);
}

std::string ControlServer::address() const {
  return impl_->address();
}

void ControlServer::shutdown() noexcept {
  impl_->shutdown();
}

}  // namespace fusedbun::control

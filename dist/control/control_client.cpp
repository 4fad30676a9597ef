#include "fusedbun/dist/control/control_client.h"

#include <google/protobuf/util/time_util.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "fusedbun/dist/control/credentials.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/socket_path.h"
#include "fusedbun/dist/run_folder/control_file.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace fusedbun::control {
namespace {

constexpr const char* kThisJob = "jobs/-";
/// Each of several addresses is waited for so long before the next one has its turn.
constexpr std::chrono::milliseconds kTurn{20};

/// How to reach a job that has to be asked where it runs.
std::string go_there(const run_folder::ProcessPlace& place) {
  return "run the command there, as in 'ssh " + place.host +
         " fusedbun status --run-dir FOLDER', or start the job with --control 0.0.0.0:PORT and "
         "--control-credentials";
}

/// What the run folder knows of a job that does not answer. Only one whose process could be seen from here is called gone.
std::string about_silent_job(const std::optional<run_folder::ControlFile>& file) {
  if (!file) return {};
  const std::string process = describe(file->place);
  if (is_surely_gone(file->place)) return "; its process, " + process + ", is gone";
  return shares_processes(file->place)
             ? "; control.json names " + process
             : "; it may well live: control.json names " + process + ": " + go_there(file->place);
}

/// Under which addresses a job can be reached from here.
struct Targets {
  std::unique_ptr<SocketPath> socket = {};
  std::vector<std::string> addresses = {};  ///< as gRPC takes them, not empty
};

Targets targets_of(const std::string& address) {
  constexpr std::string_view kSocket = "unix:";
  if (!address.starts_with(kSocket)) return {.addresses = {address}};
  // A path and nothing else, whatever characters it has.
  auto socket = std::make_unique<SocketPath>(address.substr(kSocket.size()));
  const std::string target = socket->for_grpc();
  return {.socket = std::move(socket), .addresses = {target}};
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address.starts_with("[::1]");
}

Targets targets_of(const run_folder::ControlFile& file, const std::filesystem::path& run_dir) {
  const bool is_tcp = !file.addresses.empty();
  if (!is_tcp && is_on_this_kernel(file.place)) {
    return targets_of(file.socket.empty() ? file.address
                                          : "unix:" + (run_dir / file.socket).string());
  }
  Targets targets;
  for (const std::string& address : file.addresses) {
    if (!is_loopback(address) || shares_loopback(file.place)) targets.addresses.push_back(address);
  }
  FUSEDBUN_REQUIRE(!targets.addresses.empty(), UnavailableError,
                   "the job of " + run_dir.string() + " runs elsewhere (" + describe(file.place) +
                       ") and listens on " + file.address + " there: " + go_there(file.place));
  return targets;
}

/// The first of several channels that answers, or the first of all where none does.
std::shared_ptr<grpc::Channel> first_to_answer(
    const std::vector<std::shared_ptr<grpc::Channel>>& channels,
    std::chrono::milliseconds deadline) {
  if (channels.size() == 1) return channels.front();
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (std::chrono::steady_clock::now() < end) {
    bool may_answer = false;
    for (const auto& channel : channels) {
      const grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
      if (state == GRPC_CHANNEL_READY) return channel;
      if (state == GRPC_CHANNEL_TRANSIENT_FAILURE) continue;
      may_answer = true;
      // A channel of gRPC connects only while somebody waits for it.
      channel->WaitForStateChange(state, std::chrono::system_clock::now() + kTurn);
    }
    if (!may_answer) break;
  }
  return channels.front();
}

[[noreturn]] void throw_error(const grpc::Status& status, const std::string& address,
                              const std::string& about) {
  const std::string& said = status.error_message();
  const bool is_answer = !reason_of(status).reason.empty();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      if (reason_of(status).reason == "SAVE_UNDER_WAY") throw SaveUnderWay(said);
      throw UnavailableError(is_answer ? said : "no job answers on " + address + about);
    case grpc::StatusCode::CANCELLED:  // by its server, which goes down
      throw UnavailableError("the job on " + address + " left before it had answered");
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      throw TimeoutError("the job on " + address + " did not answer in time" + about);
    case grpc::StatusCode::ABORTED:
      throw EtagConflict(said);
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      throw ConfigError(said);
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      throw PermissionError(said);
    case grpc::StatusCode::UNIMPLEMENTED:
      throw ConfigError(
          said.empty() ? "what listens on " + address + " is no control plane of fusedbun" : said);
    default:
      throw Error(ExitCode::unclassified, "the job on " + address + " answered: " + said);
  }
}

}  // namespace

class ControlClient::Connection {
 public:
  Connection(const JobLocation& location, std::chrono::milliseconds deadline)
      : deadline_(deadline) {
    FUSEDBUN_REQUIRE(!location.address.empty() || !location.run_dir.empty(), UsageError,
                     "say which job: --run-dir FOLDER or --address ADDRESS");
    if (location.address.empty()) {
      file_ = run_folder::read_control_file(location.run_dir);
    } else if (!location.run_dir.empty()) {
      file_ = control_file_if_any(location.run_dir);
    }
    // The folder's own comes first: a variable may still hold another job's.
    token_ = file_ && !file_->token.empty() ? file_->token : location.token;
    const auto channel = connect(location);
    control_ = v1::TrainingControl::NewStub(channel);
    health_ = grpc::health::v1::Health::NewStub(channel);
  }

  /// Calls one method of the contract.
  template <class Request, class Reply>
  Reply call(grpc::Status (v1::TrainingControl::StubInterface::*method)(grpc::ClientContext*,
                                                                        const Request&, Reply*),
             const Request& request) {
    grpc::ClientContext context;
    show_token(context);
    context.set_deadline(std::chrono::system_clock::now() + deadline_);
    Reply reply;
    const grpc::Status status = (control_.get()->*method)(&context, request, &reply);
    if (!status.ok()) throw_error(status, address_, about_silent_job(file_));
    return reply;
  }

  /// Reads one stream of the contract until its end, or until `on_message` returns false.
  template <class Request, class Message>
  void read_stream(std::unique_ptr<grpc::ClientReader<Message>> (
                       v1::TrainingControl::Stub::*method)(grpc::ClientContext*, const Request&),
                   const Request& request, const std::function<bool(const Message&)>& on_message) {
    grpc::ClientContext context;
    show_token(context);
    const StreamUnderWay under_way(*this, context);
    const auto reader = (control_.get()->*method)(&context, request);
    bool is_wanted = true;
    for (Message message; is_wanted && reader->Read(&message);) is_wanted = on_message(message);
    if (!is_wanted) context.TryCancel();
    const grpc::Status status = reader->Finish();
    if (is_wanted && !are_cancelled_ && !status.ok())
      throw_error(status, address_, about_silent_job(file_));
  }

  void cancel_streams() {
    const std::lock_guard lock(streams_mutex_);
    are_cancelled_ = true;
    for (grpc::ClientContext* context : streams_) context->TryCancel();
  }

  Health check(const std::string& name) {
    grpc::ClientContext context;
    show_token(context);
    context.set_deadline(std::chrono::system_clock::now() + deadline_);
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    grpc::health::v1::HealthCheckResponse reply;
    const grpc::Status status = health_->Check(&context, request, &reply);
    if (status.error_code() == grpc::StatusCode::NOT_FOUND) return Health::unknown_name;
    if (!status.ok()) throw_error(status, address_, about_silent_job(file_));
    return reply.status() == grpc::health::v1::HealthCheckResponse::SERVING ? Health::serving
                                                                            : Health::not_serving;
  }

 private:
  /// With an address the folder is asked for the token alone, and may say nothing.
  static std::optional<run_folder::ControlFile> control_file_if_any(
      const std::filesystem::path& run_dir) {
    try {
      return run_folder::read_control_file(run_dir);
    } catch (const Error&) {
      return std::nullopt;
    }
  }

  std::shared_ptr<grpc::Channel> connect(const JobLocation& location) {
    Targets targets = location.address.empty() ? targets_of(*file_, location.run_dir)
                                               : targets_of(location.address);
    socket_ = std::move(targets.socket);
    address_ = location.address.empty() ? file_->address : location.address;
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // a cluster's proxy leads out of it
    const std::filesystem::path folder = location.credentials.empty() && file_
                                             ? std::filesystem::path(file_->credentials)
                                             : location.credentials;
    // Whichever address answers, it is the job's only if it holds the certificate of that name.
    if (file_ && location.address.empty() && !file_->tls_name.empty())
      arguments.SetSslTargetNameOverride(file_->tls_name);
    const auto credentials =
        folder.empty() ? grpc::InsecureChannelCredentials() : client_credentials(folder);
    std::vector<std::shared_ptr<grpc::Channel>> channels;
    for (const std::string& target : targets.addresses)
      channels.push_back(grpc::CreateCustomChannel(target, credentials, arguments));
    return first_to_answer(channels, deadline_);
  }

  void show_token(grpc::ClientContext& context) const {
    if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
  }

  /// Where cancel_streams() finds it.
  class StreamUnderWay {
   public:
    StreamUnderWay(Connection& connection, grpc::ClientContext& context)
        : connection_(connection), context_(context) {
      const std::lock_guard lock(connection_.streams_mutex_);
      connection_.streams_.insert(&context_);
      if (connection_.are_cancelled_) context_.TryCancel();
    }
    ~StreamUnderWay() {
      const std::lock_guard lock(connection_.streams_mutex_);
      connection_.streams_.erase(&context_);
    }
    StreamUnderWay(const StreamUnderWay&) = delete;  // is known by its context's address

   private:
    Connection& connection_;
    grpc::ClientContext& context_;
  };

  std::mutex streams_mutex_;
  std::set<grpc::ClientContext*> streams_;
  std::atomic<bool> are_cancelled_ = false;
  const std::chrono::milliseconds deadline_;
  std::optional<run_folder::ControlFile> file_;
  std::string token_;
  std::unique_ptr<SocketPath> socket_;
  std::string address_;
  std::unique_ptr<v1::TrainingControl::Stub> control_;
  std::unique_ptr<grpc::health::v1::Health::StubInterface> health_;
};

using Calls = v1::TrainingControl::StubInterface;

ControlClient::ControlClient(const JobLocation& location, std::chrono::milliseconds deadline)
    : connection_(std::make_unique<Connection>(location, deadline)) {}

ControlClient::~ControlClient() = default;

v1::Job ControlClient::job() {
  v1::GetJobRequest request;
  request.set_name(kThisJob);
  return connection_->call(&Calls::GetJob, request);
}

v1::Hyperparameters ControlClient::hyperparameters() {
  v1::GetHyperparametersRequest request;
  request.set_name(std::string(kThisJob) + "/hyperparameters");
  return connection_->call(&Calls::GetHyperparameters, request);
}

v1::ListHyperparameterSpecsResponse ControlClient::specs() {
  v1::ListHyperparameterSpecsRequest request;
  request.set_parent(kThisJob);
  return connection_->call(&Calls::ListHyperparameterSpecs, request);
}

v1::Change ControlClient::create_change(v1::CreateChangeRequest request) {
  request.set_parent(kThisJob);
  return connection_->call(&Calls::CreateChange, request);
}

v1::Change ControlClient::change(const std::string& name) {
  v1::GetChangeRequest request;
  request.set_name(name);
  return connection_->call(&Calls::GetChange, request);
}

v1::ListChangesResponse ControlClient::changes(v1::ListChangesRequest request) {
  request.set_parent(kThisJob);
  return connection_->call(&Calls::ListChanges, request);
}

v1::Change ControlClient::cancel_change(const v1::CancelChangeRequest& request) {
  return connection_->call(&Calls::CancelChange, request);
}

v1::ListRanksResponse ControlClient::ranks(v1::ListRanksRequest request) {
  request.set_parent(kThisJob);
  return connection_->call(&Calls::ListRanks, request);
}

void ControlClient::watch(int64_t after_sequence,
                          const std::function<bool(const v1::JobEvent&)>& on_event) {
  v1::WatchJobRequest request;
  request.set_name(kThisJob);
  request.set_after_sequence(after_sequence);
  connection_->read_stream(&v1::TrainingControl::Stub::WatchJob, request, on_event);
}

void ControlClient::stream_metrics(v1::StreamMetricsRequest request,
                                   const std::function<bool(const v1::MetricsSample&)>& on_sample) {
  request.set_name(kThisJob);
  connection_->read_stream(&v1::TrainingControl::Stub::StreamMetrics, request, on_sample);
}

void ControlClient::cancel_streams() {
  connection_->cancel_streams();
}

v1::Checkpoint ControlClient::create_checkpoint(v1::CreateCheckpointRequest request) {
  request.set_parent(kThisJob);
  return connection_->call(&Calls::CreateCheckpoint, request);
}

v1::Checkpoint ControlClient::checkpoint(const std::string& name) {
  v1::GetCheckpointRequest request;
  request.set_name(name);
  return connection_->call(&Calls::GetCheckpoint, request);
}

v1::ListCheckpointsResponse ControlClient::checkpoints(v1::ListCheckpointsRequest request) {
  request.set_parent(kThisJob);
  return connection_->call(&Calls::ListCheckpoints, request);
}

v1::Job ControlClient::drain(const std::string& reason, std::optional<double> within_seconds) {
  v1::DrainJobRequest request;
  request.set_name(kThisJob);
  request.set_reason(reason);
  if (within_seconds) {
    *request.mutable_deadline() = google::protobuf::util::TimeUtil::MicrosecondsToDuration(
        static_cast<int64_t>(*within_seconds * 1e6));
  }
  return connection_->call(&Calls::DrainJob, request);
}

v1::Job ControlClient::stop(const std::string& reason, bool force) {
  v1::StopJobRequest request;
  request.set_name(kThisJob);
  request.set_reason(reason);
  request.set_force(force);
  return connection_->call(&Calls::StopJob, request);
}

v1::Job ControlClient::pause(const std::string& reason) {
  v1::PauseJobRequest request;
  request.set_name(kThisJob);
  request.set_reason(reason);
  return connection_->call(&Calls::PauseJob, request);
}

v1::Job ControlClient::resume() {
  v1::ResumeJobRequest request;
  request.set_name(kThisJob);
  return connection_->call(&Calls::ResumeJob, request);
}

v1::Diagnostics ControlClient::dump() {
  v1::DumpDiagnosticsRequest request;
  request.set_name(kThisJob);
  return connection_->call(&Calls::DumpDiagnostics, request);
}

ControlClient::Health ControlClient::health(const std::string& name) {
  return connection_->check(name);
}

}  // namespace fusedbun::control

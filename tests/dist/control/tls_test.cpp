// Who gets in over TLS, and what each may call.
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/authenticator.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/control/every_rpc.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void run(const std::string& command) {
  ASSERT_EQ(std::system((command + " > /dev/null").c_str()), 0) << command;
}

class Tls : public testing::Test {
 protected:
  void SetUp() override {
    run(FUSEDBUN_CERTIFICATES_SCRIPT " " + folder("job").string());
    run(FUSEDBUN_CERTIFICATES_SCRIPT " " + folder("other").string());
    run(FUSEDBUN_WRONG_CERTIFICATES_SCRIPT " " + folder("job").string());
    ControlOptions options = options_in(folder("run"));
    options.address = "127.0.0.1:0";
    options.credentials = folder("job");
    server_ = std::make_unique<ControlServer>(options, two_group_job());
    server_->set_state(JobState::running);
  }
  fs::path folder(const std::string& name) const { return temporary_.path() / name; }

  /// A client that trusts the job's server and shows the certificate in `who`; without one if that is empty.
  std::unique_ptr<v1::TrainingControl::Stub> client(const fs::path& who) const {
    grpc::SslCredentialsOptions ssl{.pem_root_certs = text_of(folder("job/ca.pem")),
                                    .pem_private_key = {},
                                    .pem_cert_chain = {}};
    if (!who.empty()) {
      ssl.pem_private_key = text_of(who / "client.key");
      ssl.pem_cert_chain = text_of(who / "client.pem");
    }
    return stub(grpc::SslCredentials(ssl));
  }
  std::unique_ptr<v1::TrainingControl::Stub> stub(
      const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    return v1::TrainingControl::NewStub(grpc::CreateChannel(server_->address(), credentials));
  }

  TemporaryFolder temporary_;
  std::unique_ptr<ControlServer> server_;
};

TEST_F(Tls, EveryKindOfClientGetsWhatTheTableSaysFromEveryRpc) {
  struct Kind {
    std::string name;
    std::unique_ptr<v1::TrainingControl::Stub> stub;
    std::optional<Role> role;  ///< none: does not even connect
  };
  std::vector<Kind> kinds;
  kinds.push_back({"no TLS", stub(grpc::InsecureChannelCredentials()), {}});
  kinds.push_back({"no certificate", client({}), {}});
  kinds.push_back({"another authority's", client(folder("other/admin")), {}});
  kinds.push_back({"expired", client(folder("job/expired")), {}});
  kinds.push_back({"not yet valid", client(folder("job/early")), {}});
  kinds.push_back({"a name without a role", client(folder("job/stranger")), Role::none});
  for (const Role role : {Role::viewer, Role::operator_, Role::admin})
    kinds.push_back({std::string(name_of(role)), client(folder("job") / name_of(role)), role});

  server_->offer_checkpoints({found_checkpoint()});
  ASSERT_TRUE(call(*kinds.back().stub, Rpc::create_change).ok());  // change 1, for GetChange
  JobState state = JobState::running;
  for (const Kind& kind : kinds) {
    for (const ExpectedPolicy& policy : expected_policies()) {
      // Operator and admin each create a change and cancel their own: 2 by 3, and 4 by 5.
      const int64_t cancelled = kind.role == Role::admin ? 4 : 2;
      const grpc::Status status = call(*kind.stub, policy.rpc, cancelled);
      grpc::StatusCode expected = grpc::StatusCode::UNAVAILABLE;
      if (kind.role) {
        expected = *kind.role < policy.least
                       ? grpc::StatusCode::PERMISSION_DENIED
                       : code_of_reason(policy.reasons[state == JobState::draining ? 3 : 1]);
        if (expected == grpc::StatusCode::OK && policy.rpc == Rpc::drain_job)
          state = JobState::draining;
      }
      EXPECT_EQ(status.error_code(), expected)
          << kind.name << " calls " << policy.call << ": " << status.error_message();
    }
  }
}

TEST_F(Tls, TheOwnerFindsTheCredentialsInControlJson) {
  ControlClient owner({.run_dir = folder("run")});
  v1::CreateChangeRequest request;
  request.set_etag("*");
  request.mutable_change()->add_patches()->set_group("*");
  request.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1e-6);
  EXPECT_EQ(owner.create_change(request).actor(), "fusedbun://job/admin");
  ControlClient viewer(
      {.run_dir = {}, .address = server_->address(), .credentials = folder("job/viewer")});
  EXPECT_EQ(viewer.job().state(), v1::Job::RUNNING);
  EXPECT_THROW(viewer.create_change(request), PermissionError);
}

/// Tries until it is so, or until the deadline.
template <class Condition>
bool soon(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + seconds(15);
  while (std::chrono::steady_clock::now() < deadline) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

TEST_F(Tls, FilesThatChangeAreUsedForNewConnections) {
  const auto can_call = [&](const fs::path& who) { return call(*client(who), Rpc::get_job).ok(); };
  std::ofstream(folder("job/roles")) << "viewer fusedbun://test/stranger\n";
  EXPECT_TRUE(soon([&] { return can_call(folder("job/stranger")); }));
  EXPECT_FALSE(can_call(folder("job/admin"))) << "it has lost its role";
  EXPECT_FALSE(can_call(folder("other/viewer")));
  std::ofstream(folder("job/roles"))
      << "viewer fusedbun://other/viewer\nviewer fusedbun://test/stranger\n";
  fs::rename(folder("other/ca.pem"), folder("job/ca.pem.new"));
  const std::string servers_authority = text_of(folder("job/ca.pem"));
  fs::rename(folder("job/ca.pem.new"),
             folder("job/ca.pem"));  // clients of another authority from now on
  const auto code_for = [&](const fs::path& who) {
    return call(*stub(grpc::SslCredentials(
                    {servers_authority, text_of(who / "client.key"), text_of(who / "client.pem")})),
                Rpc::get_job)
        .error_code();
  };
  EXPECT_TRUE(soon([&] { return code_for(folder("other/viewer")) == grpc::StatusCode::OK; }));
  EXPECT_EQ(code_for(folder("job/stranger")), grpc::StatusCode::UNAVAILABLE)
      << "it has a role, but its authority is none any more";
}

TEST_F(Tls, RolesThatChangeWithinATickOfTheClockAreSeen) {
  const auto roles = folder("job/roles");
  const auto now = fs::file_time_type::clock::now() +
                   std::chrono::hours(1);  // young for as long as the test takes
  const auto write = [&](const std::string& text) {
    std::ofstream(roles) << text;
    fs::last_write_time(roles, now);
  };
  const auto viewer = client(folder("job/viewer"));
  write("");
  EXPECT_EQ(call(*viewer, Rpc::get_job).error_code(), grpc::StatusCode::PERMISSION_DENIED);
  write("viewer fusedbun://job/viewer\n");
  EXPECT_TRUE(call(*viewer, Rpc::get_job).ok());
}

TEST_F(Tls, ARoleThatIsTakenAwayEndsItsStreams) {
  std::atomic<bool> has_begun = false;
  grpc::Status metrics_status;
  grpc::Status watch_status;
  std::jthread metrics([&] {
    grpc::ClientContext context;
    v1::StreamMetricsRequest request;
    request.set_name("jobs/-");
    const auto reader = client(folder("job/viewer"))->StreamMetrics(&context, request);
    for (v1::MetricsSample sample; reader->Read(&sample);) {
    }
    metrics_status = reader->Finish();
  });
  std::jthread watch([&] {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_name("jobs/-");
    const auto reader = client(folder("job/viewer"))->WatchJob(&context, request);
    for (v1::JobEvent event; reader->Read(&event);) has_begun = true;
    watch_status = reader->Finish();
  });
  EXPECT_TRUE(soon([&] { return has_begun.load(); }));
  std::ofstream(folder("job/roles")) << "admin fusedbun://job/admin\n";
  metrics.join();
  watch.join();
  EXPECT_EQ(metrics_status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(watch_status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(Tls, ANameThatTheLogHasForAnotherGetsNoRole) {
  for (const char* name : {"uid:0", "loopback", "anybody", "file"})
    EXPECT_THROW(parse_roles(std::string("admin ") + name + "\n", "roles"), ConfigError) << name;
}

/// Streams of one client that stay open until the object goes.
class OpenStreams {
 public:
  explicit OpenStreams(std::unique_ptr<v1::TrainingControl::Stub> stub) : stub_(std::move(stub)) {}
  ~OpenStreams() {
    for (auto& [context, reader] : streams_) context->TryCancel();
  }
  /// True if it is served: its first event has come.
  bool open() {
    auto context = std::make_unique<grpc::ClientContext>();
    v1::WatchJobRequest request;
    request.set_name("jobs/-");
    auto reader = stub_->WatchJob(context.get(), request);
    v1::JobEvent event;
    const bool is_served = reader->Read(&event);
    if (!is_served) reason_ = reason_of(reader->Finish()).reason;
    if (is_served) streams_.emplace_back(std::move(context), std::move(reader));
    return is_served;
  }
  const std::string& reason() const { return reason_; }

 private:
  std::unique_ptr<v1::TrainingControl::Stub> stub_;
  std::vector<std::pair<std::unique_ptr<grpc::ClientContext>,
                        std::unique_ptr<grpc::ClientReader<v1::JobEvent>>>>
      streams_;
  std::string reason_;
};

TEST_F(Tls, OneNameGetsHalfOfTheStreamsAndLeavesTheRestToOthers) {
  OpenStreams viewer(client(folder("job/viewer")));
  int served = 0;
  while (served < 20 && viewer.open()) ++served;
  EXPECT_EQ(served, 8);
  EXPECT_EQ(viewer.reason(), "TOO_MANY_STREAMS");
  OpenStreams admin(client(folder("job/admin")));
  EXPECT_TRUE(admin.open());
}

TEST_F(Tls, AConnectionAndItsStreamsHaveTheirTime) {
  server_.reset();
  ControlOptions options = options_in(folder("run"));
  options.address = "127.0.0.1:0";
  options.credentials = folder("job");
  options.connection_age = options.connection_age_grace = std::chrono::milliseconds(200);
  server_ = std::make_unique<ControlServer>(options, two_group_job());
  server_->set_state(JobState::running);
  const auto viewer = client(folder("job/viewer"));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(20));
  v1::StreamMetricsRequest request;
  request.set_name("jobs/-");
  const auto stream = viewer->StreamMetrics(&context, request);
  for (v1::MetricsSample sample; stream->Read(&sample);) continue;
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(call(*viewer, Rpc::get_job).ok()) << "over the next connection";
}

TEST_F(Tls, StrangersDoNotFillTheLog) {
  const std::string address = server_->address();
  sockaddr_in there{
      .sin_family = AF_INET,
      .sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)))),
      .sin_addr = {htonl(INADDR_LOOPBACK)},
      .sin_zero = {}};
  testing::internal::CaptureStderr();
  constexpr int kStrangers = 50;
  for (int i = 0; i < kStrangers; ++i) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&there), sizeof there), 0);
    ASSERT_EQ(::send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    char answer[64];
    while (::recv(fd, answer, sizeof answer, 0) > 0) continue;  // until the server has closed it
    ::close(fd);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_LE(std::ranges::count(log, '\n'), 1) << log;
}

TEST_F(Tls, ReflectionIsForTheSocketAlone) {
  const grpc::string method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
  const auto code_over = [&](const std::shared_ptr<grpc::Channel>& channel) {
    grpc::GenericStub stub(channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(20));
    grpc::CompletionQueue queue;
    grpc::ByteBuffer empty;
    grpc::ByteBuffer reply;
    grpc::Status status;
    const auto answer = stub.PrepareUnaryCall(&context, method, empty, &queue);
    answer->StartCall();
    answer->Finish(&reply, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    return status.error_code();
  };
  const fs::path who = folder("job/admin");
  const auto with_tls = grpc::SslCredentials(
      {text_of(folder("job/ca.pem")), text_of(who / "client.key"), text_of(who / "client.pem")});
  EXPECT_EQ(code_over(grpc::CreateChannel(server_->address(), with_tls)),
            grpc::StatusCode::UNIMPLEMENTED);
  const ControlServer by_socket(options_in(folder("socket")), two_group_job());
  EXPECT_NE(code_over(grpc::CreateChannel(by_socket.address(), grpc::InsecureChannelCredentials())),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(Tls, AKeyThatOthersMayReadIsRefused) {
  server_.reset();
  ControlOptions options = options_in(folder("run"));
  options.credentials = folder("job");
  ::chmod(folder("job/server.key").c_str(), 0640);
  EXPECT_THROW(ControlServer(options, two_group_job()), PermissionError);
  fs::remove(folder("job/server.key"));
  EXPECT_THROW(ControlServer(options, two_group_job()), ConfigError);
}

TEST(PlaintextOffLoopback, NeedsToBeAskedForAndWarns) {
  const TemporaryFolder folder;
  ControlOptions options = options_in(folder.path());
  options.address = "0.0.0.0:0";
  EXPECT_THROW(ControlServer(options, two_group_job()), ConfigError);
  options.address = "example.org:1";
  EXPECT_THROW(ControlServer(options, two_group_job()), ConfigError);
  options.address = "0.0.0.0:0";
  options.insecure = true;
  std::atomic<int> warnings = 0;
  options.notice = [&](std::string_view) { ++warnings; };
  ControlServer server(options, two_group_job());
  EXPECT_TRUE(soon([&] { return warnings > 0; }));
}

}  // namespace
}  // namespace fusedbun::control

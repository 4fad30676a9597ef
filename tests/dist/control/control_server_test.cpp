// The listener: who may reach it, what it leaves behind, and that it never takes another job's place.
#include "fusedbun/dist/control/control_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/run_folder/control_file.h"
#include "fusedbun/tests/dist/control/every_rpc.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using testing::HasSubstr;

mode_t mode_of(const std::filesystem::path& path) {
  struct stat found {};
  EXPECT_EQ(::stat(path.c_str(), &found), 0) << path;
  return found.st_mode & 0777;
}

ControlOptions on_port(const std::filesystem::path& run_dir, const std::string& address) {
  ControlOptions options = options_in(run_dir);
  options.address = address;
  return options;
}

template <class ErrorType>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no such error";
}

TEST(ControlServer, OnlyTheOwnerReachesIt) {
  const TemporaryFolder folder;
  const auto run_dir = folder.path() / "runs" / "a";
  const ControlServer server(options_in(run_dir), two_group_job());
  EXPECT_EQ(server.address(), "unix:" + (run_dir / "control.sock").string());
  EXPECT_EQ(mode_of(run_dir), 0700U);
  EXPECT_EQ(mode_of(run_dir / "control.sock"), 0600U);
  EXPECT_EQ(mode_of(run_dir / "control.json"), 0600U);
  EXPECT_EQ(mode_of(run_dir / "changes.log"), 0600U);
}

TEST(ControlServer, SaysWhereItIsAndTakesThatBackAtTheEnd) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  std::ifstream stream(folder.path() / "control.json");
  const auto json = nlohmann::json::parse(stream);
  EXPECT_EQ(json.at("address"), server.address());
  EXPECT_EQ(json.at("run_id"), "test");
  EXPECT_EQ(json.at("pid"), ::getpid());
  EXPECT_THAT(json.at("start_time").get<std::string>(), testing::EndsWith("Z"));
  server.shutdown();
  server.shutdown();
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "control.json"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "control.sock"));
  EXPECT_THAT(message_of<UnavailableError>([&] { ControlClient({.run_dir = folder.path()}); }),
              HasSubstr("no job with a control plane runs in"));
  EXPECT_EQ(server.port().close_step(0).newest_revision, 0) << "the loop may still come by";
}

TEST(ControlServer, ALiveJobIsNamedAndLeftAlone) {
  const TemporaryFolder folder;
  const ControlServer first(options_in(folder.path()), two_group_job());
  const std::string message = message_of<UnavailableError>(
      [&] { ControlServer(options_in(folder.path()), two_group_job()); });
  EXPECT_THAT(message, HasSubstr("pid " + std::to_string(::getpid())));
  EXPECT_EQ(ControlClient({.run_dir = folder.path()}).job().run_id(), "test");
}

TEST(ControlServer, TheSocketOfADeadJobIsTakenOver) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "control.sock").string();
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ::close(fd);  // as a killed job leaves it: a file, nobody behind it
  ASSERT_TRUE(std::filesystem::exists(path));
  const ControlServer server(options_in(folder.path()), two_group_job());
  EXPECT_EQ(ControlClient({.run_dir = folder.path()}).job().run_id(), "test");
}

TEST(ControlServer, AFileThatIsNoSocketIsLeftAlone) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "control.sock") << "mine";
  EXPECT_THROW(ControlServer(options_in(folder.path()), two_group_job()), IoError);
  EXPECT_EQ(std::filesystem::file_size(folder.path() / "control.sock"), 4U);
}

TEST(ControlServer, AFolderThatEverybodyMayWriteIsRefused) {
  const TemporaryFolder folder;
  ::chmod(folder.path().c_str(), 0777);
  EXPECT_THROW(ControlServer(options_in(folder.path()), two_group_job()), PermissionError);
}

TEST(ControlServer, APathLongerThanASocketsStillHoldsTheSocket) {
  const TemporaryFolder folder;
  const auto run_dir = folder.path() / std::string(200, 'x') / "run";
  {
    const ControlServer server(options_in(run_dir), two_group_job());
    EXPECT_EQ(mode_of(run_dir / "control.sock"), 0600U);
    EXPECT_EQ(ControlClient({.run_dir = run_dir}).job().run_id(), "test");
    EXPECT_THROW(ControlServer(options_in(run_dir), two_group_job()), UnavailableError);
  }
  EXPECT_FALSE(std::filesystem::exists(run_dir / "control.sock"));
}

/// As a run folder that is mounted elsewhere in the job's container than outside of it.
TEST(ControlServer, ARunFolderIsReachedUnderAnyOfItsNames) {
  const TemporaryFolder folder;
  const auto inside = folder.path() / "inside";
  const ControlServer server(options_in(inside), two_group_job());
  const auto outside = folder.path() / "outside";
  std::filesystem::rename(inside, outside);
  EXPECT_EQ(ControlClient({.run_dir = outside}).job().run_id(), "test");
  std::filesystem::rename(outside, inside);  // where the server takes it down
}

TEST(ControlServer, ARunFolderMayHaveAnyName) {
  const TemporaryFolder folder;
  for (const char* name : {"a%20b", "%41", "run#1", "what?x=1", "lr=0.1,wd=0.01", "two words",
                           "gr\u00fcn", "a:b", "-"}) {
    const auto run_dir = folder.path() / name;
    const ControlServer server(options_in(run_dir), two_group_job());
    EXPECT_EQ(ControlClient({.run_dir = run_dir}).job().run_id(), "test") << name;
    EXPECT_EQ(ControlClient({.address = server.address()}).job().run_id(), "test") << name;
  }
}

TEST(ControlServer, TcpIsForLoopbackAlone) {
  const TemporaryFolder folder;
  for (const char* address :
       {"0.0.0.0:0", "[::]:0", "10.1.2.3:80", "example.org:80", "127.0.0.1", "127.0.0.1:x",
        "127.0.0.1:70000", ":80", "127.0.0.1.evil.org:80", "*:80"}) {
    EXPECT_THROW(ControlServer(on_port(folder.path(), address), two_group_job()), ConfigError)
        << address;
  }
  const ControlServer server(on_port(folder.path(), "localhost:0"), two_group_job());
  EXPECT_THAT(server.address(), testing::StartsWith("127.0.0.1:"));
  EXPECT_NE(server.address(), "127.0.0.1:0");
  EXPECT_EQ(ControlClient({.run_dir = folder.path()}).job().run_id(), "test");
}

TEST(ControlServer, APortOfLoopbackServesOnlyWhoCanReadTheTokenInTheRunFolder) {
  const TemporaryFolder folder;
  ControlServer server(on_port(folder.path(), "127.0.0.1:0"), two_group_job());
  server.set_state(JobState::running);
  const std::string token = run_folder::read_control_file(folder.path()).token;
  EXPECT_THAT(token, testing::MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(std::filesystem::status(folder.path() / "control.json").permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  const auto channel = grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials());
  const auto stub = v1::TrainingControl::NewStub(channel);
  for (const ExpectedPolicy& policy : expected_policies()) {
    const grpc::Status status = call(*stub, policy.rpc);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << policy.call;
    EXPECT_EQ(reason_of(status).reason, "NO_IDENTITY");
  }
  const auto shown = [&](const std::string& authorization) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", authorization);
    v1::GetJobRequest request;
    request.set_name("jobs/-");
    v1::Job job;
    return stub->GetJob(&context, request, &job).error_code();
  };
  EXPECT_EQ(shown("Bearer " + token), grpc::StatusCode::OK);
  for (const std::string& wrong :
       {"Bearer " + token + "0", "Bearer " + token.substr(1), "bearer " + token, token,
        std::string("Bearer "), "Bearer " + std::string(32, '0')}) {
    EXPECT_EQ(shown(wrong), grpc::StatusCode::UNAUTHENTICATED) << wrong;
  }
  EXPECT_EQ(ControlClient({.run_dir = folder.path()}).job().state(), v1::Job::RUNNING);

  const TemporaryFolder other;
  const ControlServer another(on_port(other.path(), "127.0.0.1:0"), two_group_job());
  EXPECT_NE(run_folder::read_control_file(other.path()).token, token);
  const TemporaryFolder by_socket;
  const ControlServer third(options_in(by_socket.path()), two_group_job());
  EXPECT_EQ(run_folder::read_control_file(by_socket.path()).token, "")
      << "its mode keeps others out";
}

TEST(ControlServer, ATakenPortIsNeverShared) {
  const TemporaryFolder first_folder;
  const TemporaryFolder second_folder;
  const ControlServer first(on_port(first_folder.path(), "127.0.0.1:0"), two_group_job());
  EXPECT_THAT(message_of<UnavailableError>([&] {
                ControlServer(on_port(second_folder.path(), first.address()), two_group_job());
              }),
              HasSubstr("Address already in use"));
  EXPECT_FALSE(std::filesystem::exists(second_folder.path() / "control.json"));
}

/// Somebody else's listener, who would share the port if he could.
class Squatter {
 public:
  explicit Squatter(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const int on = 1;
    ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ::setsockopt(fd_, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address_.sin_port = htons(static_cast<uint16_t>(port));
    got_it_ = ::bind(fd_, reinterpret_cast<sockaddr*>(&address_), sizeof address_) == 0 &&
              ::listen(fd_, 1) == 0;
    socklen_t size = sizeof address_;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address_), &size);
  }
  ~Squatter() { ::close(fd_); }
  Squatter(const Squatter&) = delete;  // owns a file descriptor

  bool got_it() const { return got_it_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(ntohs(address_.sin_port)); }

 private:
  int fd_;
  sockaddr_in address_{};
  bool got_it_ = false;
};

TEST(ControlServer, NobodyStealsThePortBeforeOrAfter) {
  const TemporaryFolder folder;
  {
    const Squatter before(0);
    ASSERT_TRUE(before.got_it());
    EXPECT_THROW(ControlServer(on_port(folder.path(), before.address()), two_group_job()),
                 UnavailableError);
  }
  const ControlServer server(on_port(folder.path(), "127.0.0.1:0"), two_group_job());
  const std::string address = server.address();
  const Squatter after(std::stoi(address.substr(address.rfind(':') + 1)));
  EXPECT_FALSE(after.got_it());
}

TEST(ControlServer, GroupNamesAreUnique) {
  const TemporaryFolder folder;
  JobDescription job = two_group_job();
  job.groups[1].name = "body";
  EXPECT_THROW(ControlServer(options_in(folder.path()), job), ConfigError);
  job.groups[1].name = "*";
  EXPECT_THROW(ControlServer(options_in(folder.path()), job), ConfigError);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "control.sock"));
}

nlohmann::json control_json(const std::filesystem::path& run_dir) {
  std::ifstream stream(run_dir / "control.json");
  return nlohmann::json::parse(stream);
}

TEST(ControlServer, AllInterfacesAreReachedOverLoopbackFirstAndNeverUnderTheirOwnName) {
  const TemporaryFolder folder;
  for (const char* address : {"0.0.0.0:0", "[::]:0", "[0::0]:0"}) {
    const auto run_dir = folder.path() / address;
    ControlOptions options = on_port(run_dir, address);
    options.insecure = true;
    options.host_addresses = {"10.1.2.3", "fd00::7"};
    ControlServer server(options, two_group_job());
    const std::string port = server.address().substr(server.address().rfind(':'));
    const auto json = control_json(run_dir);
    const std::vector<std::string> v4 = {"127.0.0.1" + port, "10.1.2.3" + port};
    const std::vector<std::string> both = {"127.0.0.1" + port, "[::1]" + port, "10.1.2.3" + port,
                                           "[fd00::7]" + port};
    EXPECT_EQ(json.at("addresses"), address[0] == '0' ? v4 : both);
    EXPECT_EQ(json.at("address"), "127.0.0.1" + port);
    EXPECT_EQ(json.at("token"), "") << "off loopback it would travel in the clear";
    EXPECT_EQ(ControlClient({.run_dir = run_dir}).job().run_id(), "test");
  }
}

TEST(ControlServer, APortOfLoopbackHasATokenOfItsOwn) {
  const TemporaryFolder folder;
  std::set<std::string> tokens;
  for (const char* name : {"a", "b"}) {
    ControlServer server(on_port(folder.path() / name, "127.0.0.1:0"), two_group_job());
    EXPECT_EQ(mode_of(folder.path() / name / "control.json"), 0600U);
    tokens.insert(control_json(folder.path() / name).at("token"));
  }
  EXPECT_EQ(tokens.size(), 2);
  EXPECT_THAT(tokens, testing::Each(testing::MatchesRegex("[0-9a-f]{32}")));
  const ControlServer server(options_in(folder.path() / "c"), two_group_job());
  EXPECT_EQ(control_json(folder.path() / "c").at("token"), "") << "a socket needs none";
}

/// What a client is told of the job that `file` names, which does not answer.
std::string told_of(run_folder::ControlFile file) {
  const TemporaryFolder folder;
  file.socket = "control.sock";
  file.address = "unix:/runs/a/control.sock";
  run_folder::write_control_file(folder.path(), file);
  return message_of<UnavailableError>([&] { ControlClient({.run_dir = folder.path()}).job(); });
}

TEST(ControlServer, AClientOfADeadJobIsToldSo) {
  run_folder::ProcessPlace place = run_folder::this_process();
  place.pid = 999'999'999;
  place.host = "here";
  EXPECT_THAT(told_of({.run_id = "dead", .place = place}),
              HasSubstr("pid 999999999 on here, is gone"));
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "control.json") << "{";
  EXPECT_THROW(ControlClient({.run_dir = folder.path()}), DataError);
  EXPECT_THROW(ControlClient({}), UsageError);
}

TEST(ControlServer, AJobElsewhereIsNeverCalledGone) {
  const auto elsewhere = [](auto change) {
    run_folder::ProcessPlace place = run_folder::this_process();
    place.pid = 999'999'999;
    place.host = "node3";
    change(place);
    return told_of({.run_id = "elsewhere", .place = place});
  };
  const auto another_host = elsewhere([](auto& place) { place.boot_id = "another"; });
  EXPECT_THAT(another_host, HasSubstr("on node3, another host than this one"));
  EXPECT_THAT(another_host, HasSubstr("ssh node3 "));
  EXPECT_THAT(elsewhere([](auto& place) { place.pid_namespace = "pid:[1]"; }),
              HasSubstr("it may well live: control.json names pid 999999999 on node3, in another "
                        "container of this host"));
  for (const std::string& said :
       {another_host, elsewhere([](auto& place) { place.pid_namespace = "pid:[1]"; }),
        elsewhere([](auto& place) { place.boot_id.clear(); })})
    EXPECT_THAT(said, testing::Not(HasSubstr("is gone")));
}

TEST(ControlServer, LoopbackOfAnotherHostIsNotCalled) {
  const TemporaryFolder here;
  const ControlServer stranger(on_port(here.path() / "stranger", "127.0.0.1:0"), two_group_job());
  run_folder::ProcessPlace place = run_folder::this_process();
  place.host = "node3";
  place.network_namespace = "net:[1]";
  run_folder::write_control_file(here.path(), {.address = stranger.address(),
                                               .addresses = {stranger.address()},
                                               .run_id = "elsewhere",
                                               .place = place});
  EXPECT_THAT(message_of<UnavailableError>([&] { ControlClient({.run_dir = here.path()}); }),
              HasSubstr("runs elsewhere"));
}

}  // namespace
}  // namespace fusedbun::control

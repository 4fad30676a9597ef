#include "fusedbun/dist/control/change_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

std::vector<nlohmann::json> records_in(const std::filesystem::path& run_dir) {
  std::ifstream stream(run_dir / "changes.log");
  std::vector<nlohmann::json> records;
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty()) records.push_back(nlohmann::json::parse(line, nullptr, false));
  }
  return records;
}

v1::CreateChangeRequest request_of(const std::string& group, double learning_rate,
                                   const std::string& reason) {
  v1::CreateChangeRequest request;
  request.set_etag("*");
  request.mutable_change()->set_reason(reason);
  v1::GroupPatch& patch = *request.mutable_change()->add_patches();
  patch.set_group(group);
  patch.mutable_values()->set_learning_rate(learning_rate);
  return request;
}

class Served : public testing::Test {
 protected:
  Served()
      : server_(options_in(folder_.path()), two_group_job()), client_({.run_dir = folder_.path()}) {
    server_.set_state(JobState::running);
  }
  TemporaryFolder folder_;
  ControlServer server_;
  ControlClient client_;
};

TEST_F(Served, EachAcceptedChangeIsOneRecordAndRefusedOnesNone) {
  client_.create_change(request_of("*", 0.5, "first"));
  EXPECT_THROW(client_.create_change(request_of("*", -1, "refused")), ConfigError);
  v1::CreateChangeRequest dry = request_of("*", 0.125, "dry");
  dry.set_validate_only(true);
  client_.create_change(dry);
  client_.create_change(request_of("body", 0.25, "second"));
  const auto records = records_in(folder_.path());
  ASSERT_EQ(records.size(), 3U);
  EXPECT_EQ(records[0].at("record"), "run");
  EXPECT_EQ(records[0].at("version"), 1);
  EXPECT_EQ(records[2].at("revision"), 2);
  EXPECT_EQ(records[2].at("reason"), "second");
  EXPECT_EQ(records[2].at("effective_step"), 2);
  EXPECT_EQ(records[2].at("values").dump(),
            R"([{"field":"learning_rate","group":"body","value":0.25}])");
  EXPECT_EQ(records[2].at("previous").dump(),
            R"([{"field":"learning_rate","group":"body","value":0.5}])");
  EXPECT_EQ(records[1].at("previous").size(), 2U) << "each group that \"*\" means";
  EXPECT_TRUE(records[1].at("previous")[0].at("value").is_null()) << "was not pinned";
}

TEST_F(Served, HostileTextStaysOnItsLine) {
  client_.create_change(request_of("*", 0.5, "a\n{\"record\":\"forged\"}\n\x1b[31m\t\x7f"));
  const auto records = records_in(folder_.path());
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[1].at("reason"), "a\n{\"record\":\"forged\"}\n\x1b[31m\t\x7f");
  std::ifstream stream(folder_.path() / "changes.log");
  const std::string text(std::istreambuf_iterator<char>(stream), {});
  EXPECT_EQ(text.find('\x1b'), text.npos);
}

TEST_F(Served, TheEndSaysWhatWasNeverUsed) {
  v1::CreateChangeRequest later = request_of("*", 0.5, "");
  later.mutable_change()->set_apply_at_step(1000);
  client_.create_change(later);
  server_.set_state(JobState::stopped, "left");
  const auto record = records_in(folder_.path()).back();
  EXPECT_EQ(record.at("record"), "end");
  EXPECT_EQ(record.at("state"), "STOPPED");
  EXPECT_EQ(record.at("rejected").dump(), "[1]");
}

TEST_F(Served, AChangeThatCannotBeLoggedIsNotTaken) {
  client_.create_change(request_of("*", 0.5, "fits"));
  const std::string before = client_.hyperparameters().SerializeAsString();
  const auto size = std::filesystem::file_size(folder_.path() / "changes.log");
  const auto old_action = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  ::getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit full{size + 10,
                    old_limit.rlim_max};  // as a disk that fills up in the middle of a record
  ::setrlimit(RLIMIT_FSIZE, &full);
  EXPECT_THROW(client_.create_change(request_of("*", 0.25, "does not fit")), UnavailableError);
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_action);
  EXPECT_EQ(std::filesystem::file_size(folder_.path() / "changes.log"), size)
      << "nothing half-written";
  EXPECT_EQ(client_.hyperparameters().SerializeAsString(), before);
  EXPECT_EQ(client_.create_change(request_of("*", 0.25, "now it does")).revision(), 2);
}

TEST(ChangeLog, ATornLineOfACrashIsEndedAndTheRestKept) {
  const TemporaryFolder folder;
  std::ofstream(folder.path() / "changes.log") << R"({"record":"run","version":1})"
                                               << "\n"
                                               << R"({"record":"chan)";
  { const ChangeLog log(folder.path(), "second"); }
  const auto records = records_in(folder.path());
  ASSERT_EQ(records.size(), 3U);
  EXPECT_EQ(records[0].at("version"), 1);
  EXPECT_TRUE(records[1].is_discarded());
  EXPECT_EQ(records[2].at("run_id"), "second");
}

}  // namespace
}  // namespace fusedbun::control

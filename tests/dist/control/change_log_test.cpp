#include "fusedbun/dist/changes/change_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// Line by line, as a person's tools would read them.
std::vector<nlohmann::json> records_in(const std::filesystem::path& run_dir) {
  std::ifstream stream(run_dir / "changes.log");
  std::vector<nlohmann::json> records;
  for (std::string line; std::getline(stream, line);)
    records.push_back(nlohmann::json::parse(line.substr(line.find('{'))));
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
  EXPECT_EQ(records[0].at("version"), 2);
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

TEST_F(Served, TextThatWouldReachATerminalAsMoreThanTextIsRefused) {
  // New lines, ANSI colours, DEL, the C1 form of CSI, characters that end a line or turn the direction of text.
  for (const char* hostile : {"a\n{\"record\":\"forged\"}", "\r", "\x1b[31m", "\t", "\x7f",
                              "\xc2\x9b"
                              "2J",
                              "\xe2\x80\xae", "\xe2\x80\xa8", "\xe2\x81\xa6", "\xe2\x80\x8f"}) {
    v1::CreateChangeRequest request = request_of("*", 0.5, std::string("b") + hostile);
    EXPECT_THROW(client_.create_change(request), ConfigError) << hostile;
    request = request_of("*", 0.5, "");
    request.set_request_id(std::string("b") + hostile);
    EXPECT_THROW(client_.create_change(request), ConfigError) << hostile;
    EXPECT_THROW(client_.drain(hostile), ConfigError) << hostile;
    EXPECT_THROW(client_.stop(hostile), ConfigError) << hostile;
    v1::CancelChangeRequest cancel;
    cancel.set_name("jobs/-/changes/1");
    cancel.set_reason(hostile);
    EXPECT_THROW(client_.cancel_change(cancel), ConfigError) << hostile;
  }
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
  const std::string text = "größer, 値を下げる, \xf0\x9f\x98\x80 \xe2\x80\x93 \xe2\x82\xac";
  EXPECT_EQ(client_.create_change(request_of("*", 0.5, text)).reason(), text);
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

// ---- another attempt of the run ----------------------------------------------------------------

class Attempts : public testing::Test {
 protected:
  /// One attempt of the run, from its start to `end`, or to a crash.
  template <class Body>
  void attempt(Body body, std::optional<JobState> end = std::nullopt) {
    ControlServer server(options_in(folder_.path()), job_);
    server.set_state(JobState::running);
    ControlClient client({.run_dir = folder_.path()});
    body(server, client);
    if (end) server.set_state(*end);
  }
  v1::CreateChangeRequest request_at(int64_t step, double learning_rate) {
    v1::CreateChangeRequest request = request_of("*", learning_rate, "");
    request.mutable_change()->set_apply_at_step(step);
    return request;
  }
  std::vector<changes::ChangeEntry> entries(ControlServer& server) {
    return server.port().entries(0, server.port().newest_revision());
  }

  TemporaryFolder folder_;
  JobDescription job_ = two_group_job();
};

TEST_F(Attempts, ChangesApplyAgainAtTheirSteps) {
  std::string etag;
  attempt([&](ControlServer& server, ControlClient& client) {
    client.create_change(request_at(500, 0.5));
    for (int64_t step = 0; step < 10; ++step) server.port().close_step(step);
    EXPECT_EQ(client.create_change(request_of("body", 0.25, "live")).effective_step(), 12);
    etag = client.hyperparameters().etag();
  });
  attempt([&](ControlServer& server, ControlClient& client) {
    EXPECT_EQ(server.restored_changes(), 2);
    EXPECT_EQ(client.hyperparameters().etag(), etag) << "the chain goes on";
    const auto known = entries(server);
    ASSERT_EQ(known.size(), 2U);
    EXPECT_EQ(known[0].effective_step, 500);
    EXPECT_EQ(known[1].effective_step, 12);
    EXPECT_EQ(known[1].group, 0);
    EXPECT_EQ(client.change("jobs/-/changes/2").state(), v1::Change::SCHEDULED);
    EXPECT_EQ(client.change("jobs/-/changes/2").reason(), "live");
    EXPECT_EQ(client.create_change(request_of("*", 1, "")).revision(), 3);
  });
}

TEST_F(Attempts, WhatWasCancelledStaysCancelled) {
  v1::CancelChangeRequest cancel;
  cancel.set_name("jobs/-/changes/1");
  attempt([&](ControlServer&, ControlClient& client) {
    client.create_change(request_at(500, 0.5));
    client.cancel_change(cancel);
  });
  attempt([&](ControlServer& server, ControlClient& client) {
    EXPECT_EQ(client.change(cancel.name()).state(), v1::Change::CANCELLED);
    EXPECT_EQ(client.change(cancel.name()).cancelled_by(), 2);
    EXPECT_EQ(entries(server)[1].field, changes::Field::cancel);
    EXPECT_THROW(client.cancel_change(cancel), ConfigError);
  });
}

TEST_F(Attempts, ARepeatedRequestIsKnownAcrossARestart) {
  v1::CreateChangeRequest request = request_of("*", 0.5, "once");
  request.set_request_id("the same");
  v1::Change first;
  attempt([&](ControlServer&, ControlClient& client) { first = client.create_change(request); });
  attempt([&](ControlServer&, ControlClient& client) {
    EXPECT_EQ(client.create_change(request).SerializeAsString(), first.SerializeAsString());
    request.mutable_change()->set_reason("another");
    EXPECT_THROW(client.create_change(request), ConfigError);
    EXPECT_EQ(client.changes().changes_size(), 1);
  });
}

TEST_F(Attempts, AfterAnEndForGoodAnotherRunBegins) {
  const auto change = [&](ControlServer&, ControlClient& client) {
    client.create_change(request_of("*", 0.5, ""));
  };
  for (const JobState end : {JobState::failed, JobState::drained}) attempt(change, end);
  attempt(change, JobState::succeeded);
  EXPECT_EQ(changes::read_change_log(folder_.path()).size(), 3U);
  attempt([&](ControlServer& server, ControlClient&) { EXPECT_EQ(server.restored_changes(), 0); });
  EXPECT_EQ(changes::read_change_log(folder_.path()).size(), 0U) << "of the new run";
}

TEST_F(Attempts, ChangesOfTheFileComeFirstAndOnce) {
  changes::ScheduledChange scheduled{.request = {}, .where = "changes.toml:3: changes[1]"};
  scheduled.request.apply_at_step = 0;
  scheduled.request.patches = {{"head", changes::Field::learning_rate, 0.125}};
  scheduled.request.actor = "file";
  scheduled.request.request_id = "changes[1]";
  ControlOptions options = options_in(folder_.path());
  options.changes = {scheduled};
  for (int i = 0; i < 2; ++i) {
    ControlServer server(options, job_);
    ASSERT_EQ(entries(server).size(), 1U) << "in attempt " << i;
    EXPECT_EQ(entries(server)[0].effective_step, 0);
  }
  options.changes[0].request.patches[0].value = 0.25;
  try {
    const ControlServer server(options, job_);
    ADD_FAILURE() << "an edited file was taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(),
                testing::StartsWith("changes.toml:3: changes[1]: this run has begun"));
  }
}

TEST_F(Attempts, TheLogAsAFileHasWhatWasUsed) {
  attempt([&](ControlServer& server, ControlClient& client) {
    client.create_change(request_at(500, 0.5));
    v1::CancelChangeRequest cancel;
    cancel.set_name("jobs/-/changes/1");
    client.cancel_change(cancel);
    server.port().close_step(0);
    client.create_change(request_of("body", 0.25, "because"));
  });
  EXPECT_EQ(changes::logged_changes_as_toml(folder_.path()),
            "[[changes]]\nat_step = 3\nlr = 0.25\ngroup = \"body\"\nreason = \"because\"\n");
}

TEST_F(Attempts, ALogOfAnotherJobIsRefused) {
  attempt([&](ControlServer&, ControlClient& client) {
    client.create_change(request_of("head", 0.5, ""));
  });
  std::swap(job_.groups[0], job_.groups[1]);
  EXPECT_THROW(ControlServer(options_in(folder_.path()), job_), DataError);
  job_.groups.erase(job_.groups.begin());  // "head"
  EXPECT_THROW(ControlServer(options_in(folder_.path()), job_), ConfigError);
}

TEST_F(Attempts, ATornEndIsCutOffAndDamageIsRefused) {
  attempt([&](ControlServer&, ControlClient& client) {
    client.create_change(request_of("*", 0.5, ""));
    client.create_change(request_of("*", 0.25, ""));
  });
  const auto path = folder_.path() / "changes.log";
  const std::string whole = text_of(path);
  std::ofstream(path, std::ios::binary) << whole.substr(0, whole.size() - 20);
  attempt([&](ControlServer& server, ControlClient&) { EXPECT_EQ(server.restored_changes(), 1); });
  std::string damaged = text_of(path);
  const size_t second = damaged.find('\n') + 1;
  damaged[second + 60] ^= 1;
  std::ofstream(path, std::ios::binary) << damaged;
  try {
    const ControlServer server(options_in(folder_.path()), job_);
    ADD_FAILURE() << "a damaged log was taken";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("at byte " + std::to_string(second)));
  }
  EXPECT_EQ(text_of(path), damaged) << "and left as it is";
}

}  // namespace
}  // namespace fusedbun::control

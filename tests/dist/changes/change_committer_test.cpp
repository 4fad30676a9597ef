// From requests to changes on disk and in the ledger, by many threads at once, over a real log on a disk that is slow, hangs or
// fails.
#include "fusedbun/dist/changes/change_committer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <set>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_restore.h"
#include "fusedbun/tests/dist/changes/disk_faults.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::changes {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Answer = ChangeBatch::Answer;
using Clock = ChangeCommitter::Clock;

constexpr seconds kLong{120};

std::vector<LedgerGroup> groups() {
  return {{"body", 1, preset("recommended", 1e-3)}, {"head", 1, preset("recommended", 1e-3)}};
}

ChangeRequest request_of(double learning_rate, const std::string& id = {}) {
  ChangeRequest request;
  request.patches = {{"*", Field::learning_rate, learning_rate}};
  request.actor = "a";
  request.request_id = id;
  request.etag = "*";
  return request;
}

ChangeRequest cancellation_of(int64_t revision) {
  ChangeRequest request;
  request.cancels = revision;
  request.actor = "a";
  return request;
}

/// Revision of what was accepted, now or before; 0 for a refusal.
int64_t revision_in(const Answer& answer) {
  if (const auto* accepted = std::get_if<ChangeBatch::Accepted>(&answer)) return accepted->revision;
  if (const auto* replay = std::get_if<ChangeLedger::Replay>(&answer)) return replay->revision;
  return 0;
}

std::string reason_in(const Answer& answer) {
  const auto* refusal = std::get_if<Refusal>(&answer);
  return refusal != nullptr ? refusal->reason : "";
}

/// One attempt of a run on rank 0, without clients and without ranks.
class Attempt {
 public:
  explicit Attempt(const std::filesystem::path& folder)
      : log_(std::make_shared<ChangeLog>(folder)),
        history_(std::make_shared<ChangeHistory>(folder)) {
    const LoggedRun run = log_->take_run();
    restore_changes(ledger, run);
    restored = static_cast<int64_t>(run.changes.size());
    log_->begin("test");
    commit.emplace(ledger, mutex, log_, history_,
                   ChangeCommitter::Hooks{
                       .observe = [] {},
                       .refused_by_state = [this] { return refused_by_state; },
                       .published = [this](int64_t revision) { published.push_back(revision); },
                       .text_of = [](const AcceptedChange&) { return std::string("x"); }});
  }
  Answer ask(ChangeRequest request, std::chrono::milliseconds patience = kLong) {
    return commit->commit(std::move(request), {.until = Clock::now() + patience});
  }
  /// The next step ends.
  void close_step() {
    const std::lock_guard lock(mutex);
    ledger.close_step(ledger.current_step());
  }
  int64_t newest() {
    const std::lock_guard lock(mutex);
    return ledger.newest_revision();
  }
  void refuse(const std::string& reason) {
    const std::lock_guard lock(mutex);
    refused_by_state = Refusal{RefusalKind::unavailable, reason, "", {}};
  }

  std::mutex mutex;
  ChangeLedger ledger{groups(), 0, 0};
  int64_t restored = 0;
  std::optional<Refusal> refused_by_state;
  std::vector<int64_t> published;

 private:
  std::shared_ptr<ChangeLog> log_;
  std::shared_ptr<ChangeHistory> history_;

 public:
  std::optional<ChangeCommitter> commit;  ///< its thread uses what is above
};

template <class Condition>
void wait_until(Condition condition) {
  const auto until = Clock::now() + kLong;
  while (!condition()) {
    ASSERT_LT(Clock::now(), until) << "it does not come";
    std::this_thread::sleep_for(milliseconds(1));
  }
}

class Commit : public testing::Test {
 protected:
  ~Commit() override { faults().reset(); }
  static DiskFaults& faults() { return DiskFaults::instance(); }
  std::filesystem::path folder() const { return folder_ / ""; }
  std::vector<LoggedChange> logged() const { return read_change_log(folder()); }

  support::ScratchFolder folder_;
};

/// A rank that takes in what headers announce, as dist/step does.
void follow_steps(Attempt& attempt, const std::atomic<bool>& done, ActiveChanges& rank) {
  int64_t announced = 0;
  for (int64_t step = 0; !done || announced < attempt.newest(); ++step) {
    std::vector<ChangeEntry> entries;
    {
      const std::lock_guard lock(attempt.mutex);
      entries = attempt.ledger.entries(rank.known_revision(), announced);
      attempt.ledger.close_step(step);
      announced = attempt.ledger.newest_revision();
    }
    for (const ChangeEntry& entry : entries)
      ASSERT_GT(entry.effective_step, step) << "it comes too late for its step";
    rank.accept(entries);
    std::this_thread::sleep_for(std::chrono::microseconds(step % 5 * 50));
  }
  const std::lock_guard lock(attempt.mutex);
  rank.accept(attempt.ledger.entries(rank.known_revision(), attempt.ledger.newest_revision()));
}

TEST_F(Commit, ManyAskAtOnceWhileStepsGoOnAndTheDiskIsSlow) {
  constexpr int kClients = 4;
  constexpr int kRequests = 40;
  Attempt attempt(folder());
  faults().sync_us_max = 3'000;  // many batches come too late for their step
  std::atomic<bool> done = false;
  ActiveChanges rank(2);
  std::thread loop([&] { follow_steps(attempt, done, rank); });
  std::vector<std::vector<int64_t>> revisions(kClients);
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < kRequests; ++i) {
        const std::string id = std::to_string(client) + "-" + std::to_string(i);
        const int64_t revision = revision_in(attempt.ask(request_of(1.0 + i, id)));
        ASSERT_GT(revision, 0);
        revisions[client].push_back(revision);
        if (i % 8 == 3) {
          ChangeRequest later = request_of(2.0 + i);
          later.apply_at_step = 1'000'000'000;
          const int64_t planned = revision_in(attempt.ask(later));
          revisions[client].push_back(planned);
          revisions[client].push_back(revision_in(attempt.ask(cancellation_of(planned))));
        }
        // Asked again it has no second effect.
        ASSERT_EQ(revision_in(attempt.ask(request_of(1.0 + i, id))), revision);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  done = true;
  loop.join();

  std::set<int64_t> all;
  for (const auto& of_one : revisions) {
    EXPECT_TRUE(std::ranges::is_sorted(of_one));
    all.insert(of_one.begin(), of_one.end());
  }
  const int64_t expected = kClients * (kRequests + 2 * (kRequests / 8));
  EXPECT_EQ(static_cast<int64_t>(all.size()), expected) << "each has a revision of its own";
  EXPECT_EQ(*all.rbegin(), expected) << "without a gap";
  EXPECT_EQ(rank.chain_hash(), attempt.ledger.chain_hash());
  const auto log = logged();
  ASSERT_EQ(static_cast<int64_t>(log.size()), expected);
  EXPECT_EQ(log.back().chain_hash, rank.chain_hash()) << "on disk as on the ranks";
}

TEST_F(Commit, WhoIsToldThatTheDiskRefusedHasChangedNothing) {
  Attempt attempt(folder());
  EXPECT_EQ(revision_in(attempt.ask(request_of(1))), 1);
  faults().sync_error = EIO;
  EXPECT_EQ(reason_in(attempt.ask(request_of(2))), "LOG_WRITE_FAILED");
  EXPECT_EQ(attempt.newest(), 1);
  faults().reset();
  EXPECT_EQ(revision_in(attempt.ask(request_of(3))), 2);
  ASSERT_EQ(logged().size(), 2U);
  EXPECT_EQ(logged()[1].request.patches[0].value, 3);
}

/// Several requests in one batch: the writing thread is at the disk with another while they come.
std::vector<Answer> in_one_batch(Attempt& attempt, const std::vector<ChangeRequest>& requests) {
  DiskFaults& faults = DiskFaults::instance();
  faults.hangs = true;
  std::vector<Answer> answers(requests.size());
  std::vector<std::thread> threads;
  threads.emplace_back([&] { attempt.ask(request_of(77)); });
  wait_until([&] { return faults.hanging > 0; });
  std::atomic<size_t> begun = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      ++begun;
      answers[i] = attempt.ask(requests[i]);
    });
    wait_until([&] { return begun > i && attempt.commit->waiting() > i; });
  }
  faults.sync_error = EIO;
  faults.hangs = false;
  for (std::thread& thread : threads) thread.join();
  return answers;
}

TEST_F(Commit, ARefusalThatRestsOnAChangeThatWasNotWrittenIsNotGiven) {
  Attempt attempt(folder());
  ChangeRequest planned = request_of(1);
  planned.apply_at_step = 500;
  ASSERT_EQ(revision_in(attempt.ask(planned)), 1);
  ChangeRequest with_etag = request_of(2);
  with_etag.etag = attempt.ledger.etag();
  const auto answers = in_one_batch(attempt, {cancellation_of(1), cancellation_of(1),
                                              request_of(3, "id"), request_of(4, "id"), with_etag});
  for (const Answer& answer : answers) EXPECT_EQ(reason_in(answer), "LOG_WRITE_FAILED");
  EXPECT_EQ(attempt.newest(), 1);
  faults().reset();
  EXPECT_GT(revision_in(attempt.ask(with_etag)), 0) << "its etag is still the present one";
  EXPECT_GT(revision_in(attempt.ask(cancellation_of(1))), 0) << "nobody has cancelled it";
}

TEST_F(Commit, ABatchThatTheEndOvertakesIsRefusedAndStaysOutOfTheNextAttempt) {
  {
    Attempt attempt(folder());
    faults().hangs = true;
    Answer answer;
    std::thread client([&] { answer = attempt.ask(request_of(1)); });
    wait_until([&] { return faults().hanging > 0; });
    attempt.refuse("JOB_ENDED");
    faults().hangs = false;
    client.join();
    EXPECT_EQ(reason_in(answer), "JOB_ENDED");
    EXPECT_TRUE(attempt.commit->append_run_end({.step = 3, .state = "FAILED", .again = true},
                                               Clock::now() + kLong));
  }
  EXPECT_EQ(Attempt(folder()).restored, 0);
}

// ---- a file that cannot be cut -----------------------------------------------------------------

/// As a file with the attribute "append only": what was not taken stays in it, and a record says so.
TEST_F(Commit, WhatWasTakenBackStaysOutOfTheNextAttemptAlsoIfTheFileCannotBeCut) {
  {
    Attempt attempt(folder());
    EXPECT_EQ(revision_in(attempt.ask(request_of(1))), 1);
    faults().truncate_error = EPERM;
    faults().hangs = true;
    Answer answer;
    std::thread client([&] { answer = attempt.ask(request_of(2)); });
    wait_until([&] { return faults().hanging > 0; });
    for (int step = 0; step < 5; ++step) attempt.close_step();  // too late for its step
    faults().hangs = false;
    client.join();
    EXPECT_EQ(revision_in(answer), 2) << "written again, further away";
  }
  Attempt next(folder());
  EXPECT_EQ(next.restored, 2);
  ASSERT_EQ(logged().size(), 2U);
  EXPECT_GE(logged()[1].effective_step, 7) << "and not the one that came too late";
}

TEST_F(Commit, AFileThatCannotBeRepairedTakesNothingMoreUntilItCan) {
  {
    Attempt attempt(folder());
    faults().sync_error = EIO;
    faults().truncate_error = EIO;
    const Answer answer = attempt.ask(request_of(1));
    EXPECT_EQ(reason_in(answer), "LOG_WRITE_FAILED");
    EXPECT_THAT(std::get<Refusal>(answer).message, testing::HasSubstr("another attempt"))
        << "it is not hidden";
    EXPECT_EQ(reason_in(attempt.ask(request_of(2))), "LOG_WRITE_FAILED");
    faults().reset();
    EXPECT_EQ(revision_in(attempt.ask(request_of(3))), 1);
    faults().sync_error = EIO;
    faults().truncate_error = EIO;
    EXPECT_EQ(reason_in(attempt.ask(request_of(4))), "LOG_WRITE_FAILED");
    faults().reset();  // before the log is closed
  }
  Attempt next(folder());
  EXPECT_EQ(next.restored, 1);
  EXPECT_EQ(logged()[0].request.patches[0].value, 3);
}

// ---- a disk that hangs -------------------------------------------------------------------------

/// Leaves as soon as the writing thread is at the disk with it.
Answer ask_until_it_is_written(Attempt& attempt, ChangeRequest request) {
  return attempt.commit->commit(std::move(request), {.until = Clock::now() + kLong, .gone = [] {
                                                       return DiskFaults::instance().hanging > 0;
                                                     }});
}

TEST_F(Commit, ADiskThatHangsKeepsNobody) {
  std::optional<Attempt> attempt(std::in_place, folder());
  faults().hangs = true;
  const Answer being_written = ask_until_it_is_written(*attempt, request_of(1, "first"));
  EXPECT_EQ(reason_in(being_written), "LOG_SLOW");
  EXPECT_THAT(std::get<Refusal>(being_written).message, testing::HasSubstr("same request_id"));
  const Answer queued = attempt->ask(request_of(2, "second"), milliseconds(50));
  EXPECT_EQ(reason_in(queued), "LOG_SLOW");
  EXPECT_THAT(std::get<Refusal>(queued).message, testing::HasSubstr("not taken"));
  std::atomic<bool> gone = true;
  const Answer left = attempt->commit->commit(
      request_of(3), {.until = Clock::now() + kLong, .gone = [&] { return gone.load(); }});
  EXPECT_EQ(reason_in(left), "LOG_SLOW") << "a client that has gone is waited for no longer";
  attempt->close_step();  // steps go on

  // A full queue refuses at once.
  std::vector<std::thread> clients;
  gone = false;
  for (size_t i = 0; i < ChangeCommitter::kWaitingMax; ++i) {
    clients.emplace_back([&] {
      attempt->commit->commit(request_of(4),
                              {.until = Clock::now() + kLong, .gone = [&] { return gone.load(); }});
    });
  }
  wait_until([&] { return attempt->commit->waiting() == ChangeCommitter::kWaitingMax; });
  EXPECT_EQ(reason_in(attempt->ask(request_of(5))), "LOG_SLOW");
  gone = true;
  for (std::thread& client : clients) client.join();

  EXPECT_FALSE(
      attempt->commit->append_run_end({.state = "FAILED"}, Clock::now() + milliseconds(50)));
  attempt->commit->close_grace = milliseconds(50);
  attempt->commit.reset();  // does not wait either
  attempt.reset();
  faults().hangs = false;
  wait_until([&] { return faults().hanging == 0; });
}

TEST_F(Commit, AfterAHangTheRequestIdTellsWhatBecameOfTheChange) {
  Attempt attempt(folder());
  faults().hangs = true;
  EXPECT_EQ(reason_in(ask_until_it_is_written(attempt, request_of(1, "id"))), "LOG_SLOW");
  EXPECT_EQ(reason_in(attempt.ask(request_of(2), milliseconds(50))), "LOG_SLOW");
  faults().hangs = false;
  EXPECT_EQ(revision_in(attempt.ask(request_of(1, "id"))), 1);
  EXPECT_EQ(revision_in(attempt.ask(request_of(3))), 2) << "the one that was not taken is nowhere";
}

}  // namespace
}  // namespace fusedbun::changes

// The life of changes from a client's request to the ranks, simulated in one thread: clients that lose answers and send again, a
// disk that is slow, tears and crashes, a coordinator that starts again from its log, ranks that run apart as far as their
// collectives let them. Chance decides what happens next; the seed repeats it.
//
// Checked in every run: ranks have equal chains in equal steps; a change that was answered is used in exactly its step, in this
// attempt of the run and in each later one; a request has one effect, however often it was sent; everything ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <set>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_batch.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::changes {
namespace {

using plan::between;
using plan::chance;
using plan::Random;
using plan::test_seed;

constexpr int64_t kSteps = 30;
constexpr int kRequests = 12;
constexpr int kActionsMax = 20'000;

std::vector<LedgerGroup> groups() {
  return {{"body", 1, preset("recommended", 1e-3)}, {"head", 1, preset("recommended", 1e-3)}};
}

/// What the disk holds of one change.
struct Record {
  ChangeRequest request;
  int64_t effective_step = 0;
  uint64_t chain_hash = 0;
  std::vector<int64_t> overrides = {};
};

/// One rank: it sends the header of a step, then waits for all others' before it enters the one after next.
struct Rank {
  ActiveChanges changes{2};
  std::vector<Options> options = {groups()[0].options, groups()[1].options};
  int64_t step = 0;     ///< it is in
  bool settled = true;  ///< has read the headers of the step before
  std::map<int64_t, std::pair<uint64_t, double>>
      used;  ///< [step] chain hash when it was sent, learning rate of "body"

  void enter() {
    std::vector<Options*> pointers = {&options[0], &options[1]};
    changes.enter_step(step, pointers);
  }
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed), ranks_(static_cast<size_t>(between(random_, 2, 8))) {
    for (int i = 0; i < kRequests; ++i) requests_.push_back(random_request(i));
    start_attempt();
  }

  void run() {
    for (int action = 0; action < kActionsMax; ++action) {
      if (all_answered() && finished()) return check_end();
      act();
      if (testing::Test::HasFatalFailure()) return;
    }
    FAIL() << "it does not end";
  }

  int crashes() const { return crashes_; }
  int too_late() const { return too_late_; }

 private:
  struct Client {
    ChangeRequest request;
    std::optional<int64_t> revision;  ///< as answered
    bool refused = false;
  };

  Client random_request(int index) {
    Client client;
    ChangeRequest& request = client.request;
    request.actor = "c";
    request.request_id = std::to_string(index);
    request.etag = "*";
    if (index > 3 && chance(random_, 0.25)) {
      request.cancels = between(random_, 1, index);
      request.etag.clear();
      return client;
    }
    request.patches = {{chance(random_, 0.5) ? "*" : "body", Field::learning_rate, 1.0 + index}};
    if (chance(random_, 0.4)) request.apply_at_step = between(random_, 0, kSteps);
    return client;
  }

  void start_attempt() {
    ledger_.emplace(groups(), 0, 0);
    margin_ = {};
    batch_.reset();
    for (const Record& record : disk_) {
      auto verdict =
          ledger_->propose_again(record.request, record.effective_step, record.overrides);
      ASSERT_TRUE(std::holds_alternative<AcceptedChange>(verdict));
      auto& change = std::get<AcceptedChange>(verdict);
      ASSERT_EQ(change.chain_hash, record.chain_hash);
      ledger_->commit(std::move(change));
    }
    announced_.clear();
    for (Rank& rank : ranks_) {
      rank = Rank{};
      rank.changes.accept(ledger_->entries(0, ledger_->newest_revision()));
      rank.enter();
    }
    for (Client& client : requests_) {
      ASSERT_LE(client.revision.value_or(0), ledger_->newest_revision())
          << "an answered change is lost";
    }
  }

  void act() {
    switch (between(random_, 0, 9)) {
      case 0:
        return stage_batch();
      case 1:
        return finish_batch();
      case 2:
        if (chance(random_, 0.02) && crashes_ < 5) crash();
        return;
      default:
        return move(ranks_[static_cast<size_t>(
            between(random_, 0, static_cast<int64_t>(ranks_.size()) - 1))]);
    }
  }

  /// Some clients send, for the first time or again; a disk is waited for.
  void stage_batch() {
    if (batch_) return;
    sent_.clear();
    for (Client& client : requests_) {
      const bool answered = client.revision || client.refused;
      if (chance(random_, answered ? 0.1 : 0.4)) sent_.push_back(&client);
    }
    if (sent_.empty()) return;
    restage();
  }

  void restage() {
    std::vector<const ChangeRequest*> requests;
    for (const Client* client : sent_) requests.push_back(&client->request);
    batch_ = stage(*ledger_, requests, margin_.spare_steps());
    answers_ = batch_->answers;
    records_.clear();
    for (const AcceptedChange& change : batch_->staged)
      records_.push_back(
          {change.request, change.effective_step, change.chain_hash, change.overrides});
  }

  void finish_batch() {
    if (!batch_) return;
    const int64_t passed = ledger_->current_step() - batch_->staged_in_step;
    if (!publish(*ledger_, *batch_)) {
      margin_.missed(passed);
      ++too_late_;
      return restage();
    }
    margin_.published(passed);
    disk_.insert(disk_.end(), records_.begin(), records_.end());
    batch_.reset();
    for (size_t i = 0; i < sent_.size(); ++i) {
      if (chance(random_, 0.3)) continue;  // the answer is lost; the client sends again
      take_answer(*sent_[i], answers_[i]);
    }
  }

  void take_answer(Client& client, const ChangeBatch::Answer& answer) {
    std::optional<int64_t> revision;
    if (const auto* accepted = std::get_if<ChangeBatch::Accepted>(&answer))
      revision = accepted->revision;
    if (const auto* replay = std::get_if<ChangeLedger::Replay>(&answer))
      revision = replay->revision;
    if (client.revision) {
      ASSERT_EQ(revision, client.revision) << "one request, two effects";
    } else if (revision) {
      client.revision = revision;
    } else {
      client.refused = true;
    }
  }

  /// The process ends. Of what was being written any first part may have reached the disk; of what was not answered, nobody knows.
  void crash() {
    ++crashes_;
    if (batch_) {
      const auto torn =
          static_cast<std::ptrdiff_t>(between(random_, 0, static_cast<int64_t>(records_.size())));
      disk_.insert(disk_.end(), records_.begin(), records_.begin() + torn);
    }
    start_attempt();
  }

  void move(Rank& rank) {
    if (rank.step > kSteps) return;
    if (!rank.settled) {
      const bool all_sent =
          std::ranges::all_of(ranks_, [&](const Rank& other) { return other.step >= rank.step; });
      if (!all_sent) return;
      const int64_t newest = announced_.at(rank.step - 1);
      if (newest > rank.changes.known_revision())
        rank.changes.accept(ledger_->entries(rank.changes.known_revision(), newest));
      rank.settled = true;
      return;
    }
    if (&rank == ranks_.data()) {
      ledger_->close_step(rank.step);
      announced_[rank.step] = ledger_->newest_revision();
      StepReport report{.job_step = rank.step};
      report.group_options = rank.options;
      report.lr_scale = rank.changes.lr_scale();
      ledger_->observe(report);
    }
    rank.used[rank.step] = {rank.changes.chain_hash(), rank.changes.effective_lr(0, 1e-3)};
    ++rank.step;
    rank.settled = false;
    rank.enter();
  }

  bool all_answered() const {
    return std::ranges::all_of(
        requests_, [](const Client& client) { return client.revision || client.refused; });
  }
  bool finished() const {
    return !batch_ &&
           std::ranges::all_of(ranks_, [](const Rank& rank) { return rank.step > kSteps; });
  }

  void check_end() {
    std::set<int64_t> revisions;
    for (const Client& client : requests_) {
      if (!client.revision) continue;
      ASSERT_TRUE(revisions.insert(*client.revision).second);
    }
    for (int64_t step = 0; step <= kSteps; ++step) {
      double expected = 1e-3;
      std::pair<int64_t, int64_t> newest{-1, -1};
      for (int64_t revision = 1; revision <= ledger_->newest_revision(); ++revision) {
        const AcceptedChange& change = ledger_->change(revision);
        if (change.request.cancels || ledger_->cancelled_by(revision) > 0) continue;
        const std::pair order{change.effective_step, revision};
        if (change.effective_step > step || order < newest) continue;
        newest = order;
        expected = change.request.patches[0].value;
      }
      for (const Rank& rank : ranks_) {
        ASSERT_EQ(rank.used.at(step).first, ranks_[0].used.at(step).first)
            << "chains in step " << step;
        ASSERT_EQ(rank.used.at(step).second, expected) << "learning rate in step " << step;
      }
    }
  }

  Random random_;
  std::vector<Rank> ranks_;
  std::vector<Client> requests_;
  std::optional<ChangeLedger> ledger_;
  CommitMargin margin_;
  std::map<int64_t, int64_t> announced_;  ///< [step] newest revision in rank 0's header

  std::optional<ChangeBatch> batch_;  ///< on its way to the disk
  std::vector<Client*> sent_;
  std::vector<ChangeBatch::Answer> answers_;
  std::vector<Record> records_;
  std::vector<Record> disk_;
  int crashes_ = 0;
  int too_late_ = 0;
};

TEST(ChangeSimulation, ChangesReachAllRanksInTheirStepWhateverHappens) {
  const uint64_t first_seed = test_seed();
  int crashes = 0;
  int too_late = 0;
  for (uint64_t seed = first_seed; seed < first_seed + 10'000; ++seed) {
    Simulation simulation(seed);
    simulation.run();
    ASSERT_FALSE(testing::Test::HasFatalFailure()) << "FUSEDBUN_TEST_SEED=" << seed;
    crashes += simulation.crashes();
    too_late += simulation.too_late();
  }
  std::cout << "10,000 runs, " << crashes << " crashes, " << too_late
            << " batches that came too late\n";
  EXPECT_GT(crashes, 1'000);
  EXPECT_GT(too_late, 1'000);
}

}  // namespace
}  // namespace fusedbun::changes

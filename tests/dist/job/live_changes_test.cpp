// Two hundred changes of a training run on three ranks, over the real control plane, at random steps: every rank uses each from
// exactly its step on, and a run with the file that the log gives has the same parameters, bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/changes/change_schedule.h"
#include "fusedbun/dist/changes/changes_file.h"
#include "fusedbun/dist/control/control_server.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/tests/dist/job/change_maker.h"
#include "fusedbun/tests/dist/plan/random_model.h"
#include "local_ranks.h"
#include "scratch_folder.h"

namespace fusedbun {
namespace {

constexpr int kRanks = 3;
constexpr int kChanges = 200;
constexpr double kScheduledLr = 1e-3;

/// What a rank used in one step, as numbers that can be compared.
using Used = std::vector<double>;

Used used_of(const changes::StepReport& report) {
  Used used = {report.lr_scale, report.max_grad_norm};
  for (const Options& options : report.group_options) {
    for (const double value :
         {options.lr, options.eps, options.beta_decay, options.Lambda, options.momentum_beta,
          static_cast<double>(options.centralize), static_cast<double>(options.use_rms)})
      used.push_back(value);
  }
  return used;
}

struct TrainedRun {
  std::vector<std::vector<Used>> traces{kRanks};  ///< [rank][step]
  std::vector<std::vector<at::Tensor>> parameters{kRanks};
};

FusedbunOptions options() {
  return FusedbunOptions::recommended(kScheduledLr);
}

std::vector<changes::LedgerGroup> ledger_groups() {
  return {{"body", 128, options().values()}, {"head", 64, options().values()}};
}

/// Trains until `steps` or until the port asks to leave. Gradients depend on rank and step alone.
TrainedRun train(changes::ControlPort& port, int64_t steps, std::chrono::microseconds pause) {
  TrainedRun run;
  testing::run_ranks(kRanks, [&](comm::Communicator& communicator) {
    const int rank = communicator.rank();
    const auto tensor = [](int64_t seed, at::IntArrayRef shape) {
      return at::randn(shape, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)));
    };
    std::vector<at::Tensor> body = {tensor(1, {16, 8}).requires_grad_()};
    std::vector<at::Tensor> head = {tensor(2, {8, 7}).requires_grad_(),
                                    tensor(3, {8}).requires_grad_()};
    const std::vector<torch::optim::OptimizerParamGroup> groups = {
        torch::optim::OptimizerParamGroup(body), torch::optim::OptimizerParamGroup(head)};
    ShardedFusedbun optimizer({&communicator, &communicator}, groups, options());
    optimizer.set_control(rank == 0 ? &port : nullptr);
    for (int64_t step = 0; step < steps && optimizer.leave_request() == changes::LeaveRequest::none;
         ++step) {
      int64_t seed = 100 * step + 10 * rank;
      for (const at::Tensor& parameter : {body[0], head[0], head[1]})
        parameter.mutable_grad() = tensor(++seed, parameter.sizes());
      optimizer.step();
      run.traces[rank].push_back(used_of(optimizer.report()));
      if (rank == 0) std::this_thread::sleep_for(pause);
    }
    optimizer.finish();
    for (const at::Tensor& parameter : {body[0], head[0], head[1]})
      run.parameters[rank].push_back(parameter.detach().clone());
  });
  return run;
}

struct LiveRun {
  TrainedRun run;
  int64_t cancelled = 0;
};

/// A client changes something now and then, and stops the job when all has been used.
LiveRun run_with_a_client(const std::filesystem::path& run_dir, uint64_t seed) {
  control::ControlOptions control{.run_dir = run_dir};
  control.changes_per_second = 0;
  control::JobDescription job{.world_size = kRanks};
  job.groups = ledger_groups();
  control::ControlServer server(control, job);
  server.set_state(control::JobState::running);
  LiveRun live;
  std::jthread client([&] {
    plan::Random random(seed);
    testing::ChangeMaker maker(run_dir);
    int64_t last_step = 0;
    for (int made = 0; made < kChanges;) {
      constexpr const char* kFields[] = {
          "learning_rate", "eps",     "weight_decay",  "beta_decay", "momentum_beta",
          "lr_scale",      "use_rms", "max_grad_norm", "centralize", "unpin_learning_rate"};
      constexpr const char* kGroups[] = {"*", "body", "head"};
      const std::string field = kFields[random() % std::size(kFields)];
      const bool of_job = field == "lr_scale" || field == "max_grad_norm";
      const bool is_flag = field == "use_rms" || field == "centralize";
      const double value = field == "unpin_learning_rate" ? 1
                           : is_flag                      ? static_cast<double>(random() % 2)
                                     : 1e-3 * static_cast<double>(1 + random() % 900);
      const int64_t at =
          random() % 3 == 0 ? -1 : maker.current_step() + plan::between(random, 2, 25);
      try {
        const auto change = maker.set(of_job ? "*" : kGroups[random() % 3], field, value, at);
        ++made;
        last_step = std::max(last_step, change.effective_step);
        if (random() % 10 == 0 && maker.cancel(change.revision)) ++live.cancelled;
      } catch (const ConfigError&) {  // the step has passed in the meantime
      }
    }
    while (maker.current_step() < last_step + 3) std::this_thread::yield();
    maker.stop();
  });
  live.run =
      train(server.port(), std::numeric_limits<int64_t>::max(), std::chrono::microseconds(500));
  client.join();
  server.set_state(control::JobState::stopped);
  return live;
}

/// By the log alone: what holds in each step.
std::vector<Used> expected(const std::filesystem::path& run_dir, size_t steps) {
  std::vector<Used> expected;
  changes::ActiveChanges active(2);
  changes::ChangeLedger ledger(ledger_groups(), 0, 0);
  for (const changes::LoggedChange& logged : changes::read_change_log(run_dir)) {
    auto verdict = ledger.propose_again(logged.request, logged.effective_step);
    ledger.commit(std::get<changes::AcceptedChange>(std::move(verdict)));
  }
  active.accept(ledger.entries(0, ledger.newest_revision()));
  std::vector<Options> values = {options().values(), options().values()};
  for (size_t step = 0; step < steps; ++step) {
    active.enter_step(static_cast<int64_t>(step), std::vector<Options*>{&values[0], &values[1]});
    changes::StepReport report;
    report.lr_scale = active.lr_scale();
    report.max_grad_norm = active.max_grad_norm().value_or(0);
    report.group_options = values;
    for (int group = 0; group < 2; ++group)
      report.group_options[group].lr = active.effective_lr(group, kScheduledLr);
    expected.push_back(used_of(report));
  }
  return expected;
}

TEST(LiveChanges, AreUsedFromTheirStepOnByAllRanksAndCanBeRepeated) {
  const uint64_t seed = plan::test_seed();
  const support::ScratchFolder folder;
  const std::filesystem::path run_dir = folder / "run";
  const LiveRun live = run_with_a_client(run_dir, seed);
  const size_t steps = live.run.traces[0].size();
  const auto values = expected(run_dir, steps);
  for (int rank = 0; rank < kRanks; ++rank) {
    ASSERT_EQ(live.run.traces[rank].size(), steps);
    for (size_t step = 0; step < steps; ++step)
      ASSERT_EQ(live.run.traces[rank][step], values[step]) << "rank " << rank << ", step " << step;
  }

  const auto changes =
      changes::parse_changes(changes::logged_changes_as_toml(run_dir), "changes.toml");
  EXPECT_EQ(static_cast<int64_t>(changes.size()), kChanges - live.cancelled);
  changes::ChangeSchedule schedule(changes::ChangeLedger(ledger_groups(), 0, 0), changes);
  const TrainedRun again =
      train(schedule, static_cast<int64_t>(steps), std::chrono::microseconds(0));
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(again.traces[rank], live.run.traces[rank]);
    for (size_t p = 0; p < again.parameters[rank].size(); ++p)
      EXPECT_TRUE(at::equal(again.parameters[rank][p], live.run.parameters[rank][p]))
          << "rank " << rank << ", " << p;
  }
  std::cout << kChanges << " changes, " << live.cancelled << " cancelled, in " << steps
            << " steps\n";
}

}  // namespace
}  // namespace fusedbun

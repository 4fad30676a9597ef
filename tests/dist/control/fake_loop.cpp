#include "fusedbun/tests/dist/control/fake_loop.h"

#include <stdlib.h>

#include <string>
#include <utility>

namespace fusedbun::control {

TemporaryFolder::TemporaryFolder() {
  std::string name = "/tmp/fusedbun_control_XXXXXX";
  path_ = ::mkdtemp(name.data());
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

JobDescription two_group_job() {
  JobDescription job{
      .world_size = 2, .total_steps = 1'000'000, .version = "0.1", .backend = "local"};
  job.groups = {{"body", 100, preset("recommended", 1e-3)}, {"head", 10, preset("compact", 1e-3)}};
  return job;
}

ControlOptions options_in(const std::filesystem::path& run_dir) {
  return {.run_dir = run_dir,
          .address = "",
          .changes_per_second = 0,
          .run_id = "test",
          .stall_timeout = std::chrono::milliseconds(200)};
}

ControlServer::FoundCheckpoint found_checkpoint() {
  return {.facts = {.job_step = kFoundCheckpoint,
                    .bytes = 1000,
                    .world_size = 2,
                    .digest = std::string(16, '\x01'),
                    .folder = "/runs/a/checkpoints/step-7",
                    .written_us = 1'700'000'000'000'000},
          .damage = ""};
}

FakeRank::FakeRank(changes::ControlPort& port)
    : port_(port), active_(static_cast<int>(two_group_job().groups.size())) {
  for (const changes::LedgerGroup& group : two_group_job().groups)
    options_.push_back(group.options);
  active_.accept(port_.entries(0, port_.newest_revision()));
  announced_ = active_.known_revision();
}

changes::LeaveRequest FakeRank::step(
    const std::function<void(const changes::StepReport&)>& during) {
  std::vector<Options*> pointers;
  for (Options& options : options_) pointers.push_back(&options);
  active_.enter_step(next_step_, pointers);
  const changes::StepReport report = this->report();
  if (during) during(report);
  // The header of the step before is read in this one, and only then the content of what it announced.
  if (announced_ > active_.known_revision())
    active_.accept(port_.entries(active_.known_revision(), announced_));
  const auto boundary = port_.close_step(next_step_);
  port_.step_finished(report);
  announced_ = boundary.newest_revision;
  checkpoint_requested_ = std::exchange(asked_for_checkpoint_, boundary.checkpoint);
  ++next_step_;
  return boundary.leave;
}

changes::StepReport FakeRank::report() const {
  changes::StepReport report;
  report.job_step = next_step_;
  report.active_revision = active_.active_revision();
  for (size_t group = 0; group < options_.size(); ++group) {
    const double scheduled = 1e-3;
    report.group_options.push_back(options_[group]);
    report.group_options.back().lr = active_.effective_lr(static_cast<int>(group), scheduled);
    report.scheduled_lr.push_back(scheduled);
    report.lr_pinned.push_back(active_.lr_pin(static_cast<int>(group)).has_value());
  }
  report.lr_scale = active_.lr_scale();
  report.max_grad_norm = active_.max_grad_norm().value_or(0);
  return report;
}

FakeLoop::FakeLoop(changes::ControlPort& port, std::chrono::microseconds step_time)
    : rank_(port), step_time_(step_time) {
  thread_ = std::thread([this] { run(); });
}

FakeLoop::~FakeLoop() {
  ended_ = true;
  thread_.join();
}

bool FakeLoop::wait_for_step(int64_t step) const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (static_cast<int64_t>(learning_rates().size()) <= step) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(step_time_);
  }
  return true;
}

std::vector<double> FakeLoop::learning_rates() const {
  const std::lock_guard lock(mutex_);
  return learning_rates_;
}

void FakeLoop::run() {
  while (!ended_ && left_ == changes::LeaveRequest::none) {
    left_ = rank_.step([this](const changes::StepReport& report) {
      std::this_thread::sleep_for(step_time_);
      const std::lock_guard lock(mutex_);
      learning_rates_.push_back(report.group_options[0].lr);
    });
    while (held_ && !ended_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace fusedbun::control

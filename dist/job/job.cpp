#include "fusedbun/dist/job/job.h"

#include <iostream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/run_folder_lock.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/job/connect.h"
#include "fusedbun/dist/step/position_board.h"
#ifdef FUSEDBUN_HAS_CONTROL
#include "fusedbun/dist/control/control_server.h"
#endif

namespace fusedbun {
namespace {

/// What rank 0 does alone, as something that can be told to all.
Outcome attempt(const std::function<void()>& action) {
  try {
    action();
    return {};
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.what()};
  } catch (const std::exception& error) {
    return {static_cast<int>(ExitCode::unclassified), error.what()};
  }
}

}  // namespace

class Job::Parts {
 public:
  explicit Parts(JobOptions given)
      : options(std::move(given)),
        identity(plan::identify(read_environment(), options.identity)),
        connections(connect(
            identity,
            {.backend = options.backend, .use_gpu = options.use_gpu, .timeout = options.timeout})) {
    Outcome outcome;
    if (identity.rank == 0 && !options.run_dir.empty()) {
      outcome = attempt([&] { lock = std::make_unique<control::RunFolderLock>(options.run_dir); });
    }
    share_outcome(*connections.host, outcome);
  }

  void notice(std::string_view sentence) const {
    if (identity.rank != 0) return;
    if (options.notice) {
      options.notice(sentence);
    } else {
      std::cerr << "fusedbun: " << sentence << '\n';
    }
  }

  void serve(ShardedFusedbun& optimizer);

  JobOptions options;
  plan::Identity identity;
  Connections connections;
  PositionBoard board;
  std::unique_ptr<control::RunFolderLock> lock;
#ifdef FUSEDBUN_HAS_CONTROL
  std::unique_ptr<control::ControlServer> server;
#endif
};

#ifdef FUSEDBUN_HAS_CONTROL
namespace {

control::JobDescription describe(const ShardedFusedbun& optimizer, const JobOptions& options,
                                 const plan::Identity& identity, std::string_view backend) {
  control::JobDescription job;
  job.world_size = identity.world_size;
  job.first_step = optimizer.job_step();
  job.total_steps = options.total_steps;
  job.restart_count = identity.restart_count;
  job.version = FUSEDBUN_VERSION;
  job.backend = backend;
  job.max_grad_norm = optimizer.max_grad_norm();
  const auto& groups = optimizer.param_groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    control::GroupDescription group;
    group.name = groups.size() == 1 ? "default" : "group" + std::to_string(g);
    for (const plan::ParameterSpec& parameter : optimizer.shard_plan().parameters) {
      if (parameter.group == static_cast<int>(g)) group.parameter_count += parameter.elements();
    }
    group.options = static_cast<const FusedbunOptions&>(groups[g].options()).values();
    job.groups.push_back(std::move(group));
  }
  return job;
}

}  // namespace

void Job::Parts::serve(ShardedFusedbun& optimizer) {
  if (!options.control) return;
  if (options.run_dir.empty())
    return notice("no run folder was given, so there is no control plane");
  Outcome outcome;
  if (identity.rank == 0) {
    outcome = attempt([&] {
      control::ControlOptions control;
      control.run_dir = options.run_dir;
      control.address = options.control_address;
      if (!identity.run_id.empty()) control.run_id = identity.run_id;
      server = std::make_unique<control::ControlServer>(
          control, describe(optimizer, options, identity, connections.data().backend()));
      server->set_state(control::JobState::running);
    });
  }
  share_outcome(*connections.host, outcome);
  optimizer.set_control(server ? &server->port() : nullptr);
}
#else
void Job::Parts::serve(ShardedFusedbun&) {
  if (options.control) notice("this build has no control plane (FUSEDBUN_WITH_CONTROL is off)");
}
#endif

Job::Job(JobOptions options) : parts_(std::make_unique<Parts>(std::move(options))) {}
Job::~Job() = default;

const plan::Identity& Job::identity() const {
  return parts_->identity;
}
const plan::BackendChoice& Job::backend() const {
  return parts_->connections.choice;
}

Channels Job::channels() {
  return {&parts_->connections.data(), parts_->connections.host.get(), &parts_->board};
}

void Job::serve(ShardedFusedbun& optimizer) {
  parts_->serve(optimizer);
}

std::string Job::control_address() const {
#ifdef FUSEDBUN_HAS_CONTROL
  if (parts_->server) return parts_->server->address();
#endif
  return {};
}

void Job::finish(plan::LeaveRequest left) {
  parts_->connections.host->barrier().wait();
#ifdef FUSEDBUN_HAS_CONTROL
  if (!parts_->server) return;
  switch (left) {
    case plan::LeaveRequest::none:
      parts_->server->set_state(control::JobState::succeeded);
      break;
    case plan::LeaveRequest::drain:
      parts_->server->set_state(control::JobState::stopped, "drained");
      break;
    case plan::LeaveRequest::stop:
      parts_->server->set_state(control::JobState::stopped, "stopped on request");
      break;
  }
  parts_->server->shutdown();
#else
  static_cast<void>(left);
#endif
}

void Job::fail(const std::string& reason) noexcept {
  parts_->connections.data().abort(reason);
  parts_->connections.host->abort(reason);
#ifdef FUSEDBUN_HAS_CONTROL
  if (!parts_->server) return;
  parts_->server->set_state(control::JobState::failed, reason);
  parts_->server->shutdown();
#endif
}

}  // namespace fusedbun

#include "fusedbun/dist/job/job.h"

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/job/device_error.h"
#include "fusedbun/dist/job/job_parts.h"

namespace fusedbun {

Job::Job(JobOptions options) : parts_(std::make_unique<Parts>(std::move(options))) {}
Job::~Job() = default;

const plan::Identity& Job::identity() const {
  return parts_->identity;
}
const plan::BackendChoice& Job::backend() const {
  return parts_->connections.choice;
}

const Placement& Job::placement() const {
  return parts_->connections.placement;
}

Channels Job::channels() {
  return {&parts_->connections.data(), parts_->connections.host.get(), &parts_->board,
          parts_->connections.placement};
}

plan::Phase Job::enter(plan::Phase phase) {
  const plan::Phase before = parts_->board.position().phase;
  parts_->board.enter(phase);
  return before;
}

std::vector<plan::RankStatus> Job::ranks() const {
  const auto& heartbeat = parts_->heartbeats.heartbeat;
  return heartbeat ? heartbeat->ranks() : std::vector<plan::RankStatus>{};
}

void Job::set_total_steps(int64_t total_steps) {
  parts_->options.total_steps = total_steps;
}

void Job::serve(ShardedFusedbun& optimizer) {
  parts_->serve(optimizer);
}

Checkpointer& Job::checkpointer() {
  return parts_->open_checkpointer();
}

SaveStart Job::save(const CheckpointContents& contents) {
  return parts_->open_checkpointer().save(contents);
}

std::optional<Loaded> Job::resume(const CheckpointContents& contents, const LoadOptions& options) {
  return parts_->open_checkpointer().load(contents, options);
}

std::vector<changes::ChangeEntry> Job::accepted_changes(int64_t after, int64_t up_to) const {
  return parts_->port != nullptr ? parts_->port->entries(after, up_to)
                                 : std::vector<changes::ChangeEntry>{};
}

std::string Job::control_address() const {
#ifdef FUSEDBUN_HAS_CONTROL
  if (parts_->server) return parts_->server->address();
#endif
  return {};
}

void Job::record_metrics(int64_t job_step, std::span<const changes::Metric> metrics) {
#ifdef FUSEDBUN_HAS_CONTROL
  if (parts_->server) parts_->server->record_metrics(job_step, metrics);
#else
  static_cast<void>(job_step);
  static_cast<void>(metrics);
#endif
}

changes::LeaveRequest Job::leave_asked() const {
#ifdef FUSEDBUN_HAS_CONTROL
  if (parts_->server) return parts_->server->leave_asked();
#endif
  return changes::LeaveRequest::none;
}

bool Job::finish(changes::LeaveRequest left, bool has_result) {
  return parts_->finish(left, has_result);
}

void Job::fail(const std::exception& error) {
  if (const auto lost = parts_->lost_rank_behind(error)) {
    const comm::Failure named{parts_->exit_code_after(*lost), parts_->sentence_about(*lost)};
    parts_->fail(static_cast<int>(named.code), named.text);
    named.raise();
  }
  const std::string where =
      "rank " + std::to_string(rank()) + " at " + placement().describe() + " on " + host_name();
  if (const auto device = device_error_behind(error, where)) {
    parts_->fail(static_cast<int>(ExitCode::device), device->what());
    throw DeviceError(*device);
  }
  const auto* ours = dynamic_cast<const Error*>(&error);
  parts_->fail(static_cast<int>(ours != nullptr ? ours->code() : ExitCode::unclassified),
               error.what());
  throw;
}

}  // namespace fusedbun

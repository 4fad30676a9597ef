#include "fusedbun/dist/job/job.h"

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/job/device_error.h"
#include "fusedbun/dist/job/job_impl.h"

namespace fusedbun {

Job::Job(JobOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Job::~Job() = default;

const plan::Identity& Job::identity() const {
  return impl_->identity;
}
const plan::BackendChoice& Job::backend() const {
  return impl_->connections.choice;
}

const Placement& Job::placement() const {
  return impl_->connections.placement;
}

Channels Job::channels() {
  return {&impl_->connections.data(), impl_->connections.host.get(), &impl_->board,
          impl_->connections.placement};
}

plan::Phase Job::enter(plan::Phase phase) {
  const plan::Phase before = impl_->board.position().phase;
  impl_->board.enter(phase);
  return before;
}

std::vector<plan::RankStatus> Job::ranks() const {
  const auto& heartbeat = impl_->heartbeats.heartbeat;
  return heartbeat ? heartbeat->ranks() : std::vector<plan::RankStatus>{};
}

void Job::set_total_steps(int64_t total_steps) {
  impl_->options.total_steps = total_steps;
}

void Job::serve(ShardedFusedbun& optimizer) {
  impl_->serve(optimizer);
}

Checkpointer& Job::checkpointer() {
  return impl_->open_checkpointer();
}

SaveStart Job::save(const CheckpointContents& contents) {
  return impl_->open_checkpointer().save(contents);
}

std::optional<Loaded> Job::resume(const CheckpointContents& contents, const LoadOptions& options) {
  return impl_->open_checkpointer().load(contents, options);
}

std::vector<changes::ChangeEntry> Job::accepted_changes(int64_t after, int64_t up_to) const {
  return impl_->port != nullptr ? impl_->port->entries(after, up_to)
                                : std::vector<changes::ChangeEntry>{};
}

std::string Job::control_address() const {
#ifdef FUSEDBUN_HAS_CONTROL
  if (impl_->server) return impl_->server->address();
#endif
  return {};
}

void Job::record_metrics(int64_t job_step, std::span<const changes::Metric> metrics) {
#ifdef FUSEDBUN_HAS_CONTROL
  if (impl_->server) impl_->server->record_metrics(job_step, metrics);
#else
  static_cast<void>(job_step);
  static_cast<void>(metrics);
#endif
}

changes::LeaveRequest Job::leave_asked() const {
#ifdef FUSEDBUN_HAS_CONTROL
  if (impl_->server) return impl_->server->leave_asked();
#endif
  return changes::LeaveRequest::none;
}

bool Job::finish(changes::LeaveRequest left, bool has_result) {
  return impl_->finish(left, has_result);
}

void Job::fail(const std::exception& error) {
  if (const auto lost = impl_->lost_rank_behind(error)) {
    const comm::Failure named{impl_->exit_code_after(*lost), impl_->sentence_about(*lost)};
    impl_->fail(static_cast<int>(named.code), named.text);
    named.raise();
  }
  const std::string where =
      "rank " + std::to_string(rank()) + " at " + placement().describe() + " on " + host_name();
  if (const auto device = device_error_behind(error, where)) {
    impl_->fail(static_cast<int>(ExitCode::device), device->what());
    throw DeviceError(*device);
  }
  const auto* ours = dynamic_cast<const Error*>(&error);
  impl_->fail(static_cast<int>(ours != nullptr ? ours->code() : ExitCode::unclassified),
              error.what());
  throw;
}

}  // namespace fusedbun

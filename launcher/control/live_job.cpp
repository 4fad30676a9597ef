#include "fusedbun/launcher/control/live_job.h"

#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

/// More samples would not make a smoother curve, only work for the job.
constexpr int kSampleIntervalNs = 50'000'000;

}  // namespace

LiveJob::LiveJob(const control::JobLocation& location) : client_(location) {
  view_.where = location.address.empty() ? location.run_dir.string() : location.address;
  view_.job = client_.job();
  metrics_ = std::thread([this] {
    control::v1::StreamMetricsRequest request;
    request.mutable_min_interval()->set_nanos(kSampleIntervalNs);
    std::string trouble;
    try {
      client_.stream_metrics(request, [this](const control::v1::MetricsSample& sample) {
        const std::lock_guard lock(mutex_);
        view_.add(sample);
        return true;
      });
    } catch (const Error& error) {
      trouble = error.what();
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (!trouble.empty()) view_.trouble = trouble;
  });
}

LiveJob::~LiveJob() {
  client_.cancel_streams();
  metrics_.join();
}

void LiveJob::refresh() {
  try {
    const control::v1::Job job = client_.job();
    const control::v1::ListChangesResponse changes = all_changes(client_);
    const control::v1::ListRanksResponse ranks = all_ranks(client_);
    const std::lock_guard lock(mutex_);
    view_.job = job;
    view_.changes.assign(changes.changes().begin(), changes.changes().end());
    view_.ranks.assign(ranks.ranks().begin(), ranks.ranks().end());
    if (!ended_) view_.trouble.clear();  // it answers again
  } catch (const Error& error) {
    const std::lock_guard lock(mutex_);
    view_.trouble = error.what();
  }
}

WatchView LiveJob::view() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

bool LiveJob::has_ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

bool LiveJob::is_up_to_date() const {
  const std::lock_guard lock(mutex_);
  if (!view_.job || view_.job->step() == 0) return true;
  return view_.last && view_.last->step() >= view_.job->step() - 1;
}

}  // namespace fusedbun::launcher

#include "fusedbun/launcher/control/live_job.h"

#include "fusedbun/launcher/control/ended_run.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

/// More samples would not make a smoother curve, only work for the job.
constexpr int kSampleIntervalNs = 50'000'000;

/// Up to this revision no change will be another: a change that is no longer scheduled stays as it is.
int64_t settled_revision(const std::vector<control::v1::Change>& changes) {
  for (const control::v1::Change& change : changes) {
    if (change.state() == control::v1::Change::SCHEDULED) return change.revision() - 1;
  }
  return changes.empty() ? 0 : changes.back().revision();
}

}  // namespace

LiveJob::LiveJob(const control::JobLocation& location) : location_(location), client_(location) {
  view_.where = location.address.empty() ? location.run_dir.string() : location.address;
  view_.job = client_.job();
  metrics_ = std::thread([this] {
    control::v1::StreamMetricsRequest request;
    request.mutable_min_interval()->set_nanos(kSampleIntervalNs);
    std::string trouble;
    // A connection with certificates has its time, and then another goes on; one that brings nothing is the last.
    for (bool was_served = true; was_served;) {
      was_served = false;
      trouble.clear();
      try {
        client_.stream_metrics(request, [&](const control::v1::MetricsSample& sample) {
          was_served = true;
          request.set_from_step(sample.step() + 1);
          const std::lock_guard lock(mutex_);
          view_.add(sample);
          return true;
        });
        break;
      } catch (const UnavailableError& error) {
        trouble = error.what();
      } catch (const Error& error) {
        trouble = error.what();
        break;
      }
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
    const int64_t settled = settled_revision(view().changes);
    const control::v1::ListChangesResponse changes =
        all_changes(client_, "revision>" + std::to_string(settled));
    const control::v1::ListRanksResponse ranks = all_ranks(client_);
    const std::lock_guard lock(mutex_);
    view_.job = job;
    view_.changes.resize(
        static_cast<size_t>(settled));  // the revision of each is one more than its index
    view_.changes.insert(view_.changes.end(), changes.changes().begin(), changes.changes().end());
    view_.ranks.assign(ranks.ranks().begin(), ranks.ranks().end());
    if (!ended_) view_.trouble.clear();  // it answers again
  } catch (const Error& error) {
    show_end(error);
  }
}

void LiveJob::show_end(const Error& unanswered) {
  std::optional<run_folder::Attempt> attempt;
  if (unanswered.code() == ExitCode::unavailable) attempt = newest_ended(location_);
  const std::lock_guard lock(mutex_);
  // Another job may have begun in the folder meanwhile.
  const bool is_this_job =
      attempt && !view_.ranks.empty() && view_.ranks.front().pid() == attempt->place.pid;
  if (is_this_job) {
    const FinalState final = final_state(*attempt);
    view_.job->set_state(final.state);
    view_.job->set_state_reason(final.reason);
    view_.job->set_step(attempt->steps);
    view_.trouble.clear();
  } else {
    view_.trouble = unanswered.what();
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

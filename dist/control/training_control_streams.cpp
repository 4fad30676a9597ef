// The RPCs that tell of the job while it runs: events, metrics, ranks.
#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/page_request.h"
#include "fusedbun/dist/control/resource_name.h"
#include "fusedbun/dist/control/steady_time.h"
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {
namespace {

using google::protobuf::util::TimeUtil;

/// How soon a stream notices that its client has gone.
constexpr std::chrono::milliseconds kLookInterval{200};
constexpr int64_t kIntervalSecondsMax = 86'400;

changes::Refusal too_many_streams(const std::string& call) {
  return {changes::RefusalKind::resource_exhausted,
          "TOO_MANY_STREAMS",
          "this job serves " + std::to_string(TrainingControlService::kStreamsMax) +
              " streams of " + call +
              " at once, with certificates half of them to one name, and none is free",
          {}};
}

v1::Rank::Liveness message_of(plan::Liveness liveness) {
  switch (liveness) {
    case plan::Liveness::alive:
      return v1::Rank::ALIVE;
    case plan::Liveness::late:
      return v1::Rank::LATE;
    case plan::Liveness::stalled:
      return v1::Rank::STALLED;
    case plan::Liveness::lost:
      return v1::Rank::LOST;
  }
  FUSEDBUN_ASSERT(false, "every liveness has a name in the contract");
}

v1::Rank to_message(const plan::RankStatus& status) {
  v1::Rank rank;
  rank.set_rank(status.rank);
  rank.set_local_rank(status.local_rank);
  rank.set_host(status.host);
  rank.set_pid(status.pid);
  rank.set_device(status.device);
  rank.set_shard_bytes(status.shard_bytes);
  rank.set_step(status.job_step);
  if (status.heartbeat_age_ms)
    *rank.mutable_heartbeat_age() = TimeUtil::MillisecondsToDuration(*status.heartbeat_age_ms);
  rank.set_phase(std::string(plan::name_of(status.phase)));
  rank.set_state_hash(hash_bytes(status.state_hash));
  rank.set_bucket(status.bucket);
  rank.set_liveness(message_of(status.liveness));
  return rank;
}

/// Only the metrics that were asked for; all if none were.
v1::MetricsSample selected(const v1::MetricsSample& sample,
                           const v1::StreamMetricsRequest& request) {
  if (request.metrics().empty()) return sample;
  v1::MetricsSample part;
  part.set_step(sample.step());
  *part.mutable_time() = sample.time();
  part.set_config_revision(sample.config_revision());
  for (const std::string& name : request.metrics()) {
    const auto found = sample.values().find(name);
    if (found != sample.values().end()) (*part.mutable_values())[name] = found->second;
  }
  return part;
}

}  // namespace

// ---- ranks -------------------------------------------------------------------------------------

void TrainingControlService::set_ranks(const plan::RankDirectory* ranks) {
  const std::lock_guard lock(ranks_mutex_);
  ranks_ = ranks;
}

std::vector<plan::RankStatus> TrainingControlService::rank_statuses() const {
  const std::lock_guard lock(ranks_mutex_);
  return ranks_ != nullptr ? ranks_->ranks() : std::vector<plan::RankStatus>{};
}

void TrainingControlService::report_lost_rank(const plan::RankStatus& rank) {
  v1::JobEvent event;
  *event.mutable_lost_rank() = to_message(rank);
  events_.add(std::move(event));
}

void TrainingControlService::warn(std::string_view sentence) {
  v1::JobEvent event;
  event.set_warning(std::string(sentence));
  events_.add(std::move(event));
}

grpc::Status TrainingControlService::ListRanks(Context* context,
                                               const v1::ListRanksRequest* request,
                                               v1::ListRanksResponse* reply) {
  const auto authorized = authorize(Rpc::list_ranks, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto read = read_page(request->page_size(), request->page_token(), 0);
  if (const auto* refusal = std::get_if<changes::Refusal>(&read)) return to_status(*refusal);
  const auto& page = std::get<PageRequest>(read);
  const std::vector<plan::RankStatus> ranks = rank_statuses();
  const auto count = static_cast<int64_t>(ranks.size());
  const int64_t last = std::min(count, page.first + page.size);
  for (int64_t rank = page.first; rank < last; ++rank)
    *reply->add_ranks() = to_message(ranks[rank]);
  if (last < count) reply->set_next_page_token(std::to_string(last));
  return grpc::Status::OK;
}

// ---- events ------------------------------------------------------------------------------------

void TrainingControlService::tell_job(v1::Job job) {
  v1::JobEvent event;
  *event.mutable_job() = std::move(job);
  events_.add(std::move(event));
}

void TrainingControlService::tell_change(v1::Change change) {
  v1::JobEvent event;
  *event.mutable_change() = std::move(change);
  events_.add(std::move(event));
}

void TrainingControlService::end_streams() {
  events_.end();
  metrics_.end();
}

grpc::Status TrainingControlService::WatchJob(Context* context, const v1::WatchJobRequest* request,
                                              grpc::ServerWriter<v1::JobEvent>* writer) {
  const auto authorized = authorize(Rpc::watch_job, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto slot = watch_slots_.take(std::get<Authorized>(authorized).caller.actor);
  if (!slot) return to_status(too_many_streams("WatchJob"));
  int64_t seen = request->after_sequence();
  while (!context->IsCancelled()) {
    if (const auto status = lost_role(Rpc::watch_job, *context)) return *status;
    const JobEvents::Page page = events_.after(seen, kLookInterval);
    if (page.outcome == JobEvents::Outcome::ended) break;
    if (page.outcome == JobEvents::Outcome::gone) {
      return to_status({changes::RefusalKind::out_of_range,
                        "EVENTS_GONE",
                        "what came after event " + std::to_string(seen) +
                            " is not kept; the oldest event is " + std::to_string(page.oldest),
                        {{"oldest_sequence", std::to_string(page.oldest)}}});
    }
    for (const v1::JobEvent& event : page.events) {
      if (!writer->Write(event)) return grpc::Status::OK;  // the client has gone
      seen = event.sequence();
    }
  }
  return grpc::Status::OK;
}

// ---- metrics -----------------------------------------------------------------------------------

void TrainingControlService::begin_sample(const changes::StepReport& report, double step_seconds) {
  publish_sample();
  sample_ = std::make_shared<TimedSample>();
  sample_->steady_us = steady_us();
  sample_->message.set_step(report.job_step);
  *sample_->message.mutable_time() = TimeUtil::GetCurrentTime();
  sample_->message.set_config_revision(report.active_revision);
  auto& values = *sample_->message.mutable_values();
  values["step_seconds"] = step_seconds;
  values["gradient_norm"] = report.gradient_norm;
  values["skipped_steps"] = static_cast<double>(report.skipped_steps);
  values["lr_scale"] = report.lr_scale;
  for (size_t group = 0; group < report.group_options.size(); ++group) {
    const std::string name =
        group < job_.groups.size() ? job_.groups[group].name : "group" + std::to_string(group);
    values["learning_rate/" + name] = report.group_options[group].lr;
  }
}

void TrainingControlService::publish_sample() {
  if (sample_) metrics_.publish(std::exchange(sample_, nullptr));
}

void TrainingControlService::record_metrics(int64_t job_step,
                                            std::span<const changes::Metric> metrics) {
  const std::lock_guard lock(progress_mutex_);
  if (!sample_ || sample_->message.step() != job_step) return;
  for (const changes::Metric& metric : metrics)
    (*sample_->message.mutable_values())[std::string(metric.name)] = metric.value;
  publish_sample();
}

grpc::Status TrainingControlService::StreamMetrics(Context* context,
                                                   const v1::StreamMetricsRequest* request,
                                                   grpc::ServerWriter<v1::MetricsSample>* writer) {
  const auto authorized = authorize(Rpc::stream_metrics, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const google::protobuf::Duration& interval = request->min_interval();
  if (interval.seconds() < 0 || interval.seconds() > kIntervalSecondsMax || interval.nanos() < 0) {
    return to_status({changes::RefusalKind::invalid_argument,
                      "BAD_INTERVAL",
                      "min_interval is not from 0 to " + std::to_string(kIntervalSecondsMax) + " s",
                      {}});
  }
  const int64_t interval_us = TimeUtil::DurationToMicroseconds(interval);
  const auto slot = metrics_slots_.take(std::get<Authorized>(authorized).caller.actor);
  if (!slot) return to_status(too_many_streams("StreamMetrics"));
  MetricsStreams::Reader reader(metrics_);
  std::optional<int64_t> last_sent_us;
  while (!context->IsCancelled()) {
    if (const auto status = lost_role(Rpc::stream_metrics, *context)) return *status;
    const auto next = reader.next(kLookInterval);
    if (next.outcome == MetricsStreams::Reader::Outcome::ended) break;
    if (next.outcome == MetricsStreams::Reader::Outcome::nothing) continue;
    if (next.sample->message.step() < request->from_step()) continue;
    if (last_sent_us && next.sample->steady_us - *last_sent_us < interval_us) continue;
    v1::MetricsSample sample = selected(next.sample->message, *request);
    sample.set_dropped(next.dropped);
    if (!writer->Write(sample)) break;  // the client has gone
    last_sent_us = next.sample->steady_us;
  }
  return grpc::Status::OK;
}

}  // namespace fusedbun::control

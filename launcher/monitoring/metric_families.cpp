#include "fusedbun/launcher/monitoring/metric_families.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <utility>

namespace fusedbun::monitoring {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  void gauge(const char* name, const char* help, double value, Labels labels = {}) {
    ClientMetric& metric = add(name, help, MetricType::Gauge, std::move(labels));
    metric.gauge.value = value;
  }
  void counter(const char* name, const char* help, double value, Labels labels = {}) {
    ClientMetric& metric = add(name, help, MetricType::Counter, std::move(labels));
    metric.counter.value = value;
  }
  void histogram(const char* name, const char* help, const DurationHistogram& durations) {
    ClientMetric::Histogram& written = add(name, help, MetricType::Histogram, {}).histogram;
    for (size_t at = 0; at < durations.counts.size(); ++at) {
      written.sample_count += durations.counts[at];
      const bool is_last = at == DurationHistogram::kBoundsSeconds.size();
      written.bucket.push_back({written.sample_count, is_last
                                                          ? std::numeric_limits<double>::infinity()
                                                          : durations.kBoundsSeconds[at]});
    }
    written.sample_sum = durations.sum_seconds;
  }
  std::vector<MetricFamily> take() { return std::move(families_); }

 private:
  ClientMetric& add(const char* name, const char* help, MetricType type, Labels labels) {
    auto family = std::ranges::find(families_, name, &MetricFamily::name);
    if (family == families_.end())
      family = families_.insert(family, {.name = name, .help = help, .type = type, .metric = {}});
    ClientMetric& metric = family->metric.emplace_back();
    metric.label = std::move(labels);
    return metric;
  }

  std::vector<MetricFamily> families_;
};

void add_versions(Families& families, const run_folder::NamedTexts& versions) {
  Labels labels;
  for (const auto& [name, version] : versions)
    labels.push_back({name == "fusedbun" ? "version" : name, version});
  families.gauge("fusedbun_build_info", "What the program was built from; always 1.", 1, labels);
}

void add_facts(Families& families, const RunFacts& facts) {
  families.gauge("fusedbun_run_info", "The run folder and the run's attempt; always 1.", 1,
                 {{"run_dir", facts.run_dir}, {"attempt", std::to_string(facts.attempt)}});
  families.gauge("fusedbun_world_size", "Ranks of the job.", facts.world_size);
  families.gauge("fusedbun_planned_steps", "Job steps that the run is to have.",
                 static_cast<double>(facts.total_steps));
}

void add_step(Families& families, const RunStatus& status, const StepMetrics& step) {
  families.gauge("fusedbun_step", "Job steps done, those of earlier attempts included.",
                 static_cast<double>(step.step + 1));
  families.gauge("fusedbun_last_step_timestamp_seconds", "Unix time when the last step ended.",
                 status.last_step_unix_time);
  families.gauge("fusedbun_loss", "Mean loss of the last step's global batch, nats per token.",
                 step.loss);
  families.gauge("fusedbun_tokens_per_second", "Of the last step, all ranks.",
                 step.tokens_per_second);
  families.gauge("fusedbun_config_revision", "The newest change that the last step used; 0: none.",
                 static_cast<double>(step.revision));
  families.counter("fusedbun_skipped_steps_total",
                   "Steps that changed nothing, since a gradient was NaN or inf.",
                   static_cast<double>(step.skipped));
  for (const GroupRate& rate : step.group_rates)
    families.gauge("fusedbun_learning_rate", "As the last step used it.", rate.lr,
                   {{"group", rate.group}});
  if (step.grad_norm > 0)
    families.gauge("fusedbun_grad_norm",
                   "2-norm of the averaged gradient before clipping; absent without clipping.",
                   step.grad_norm);
  if (step.loss_scale)
    families.gauge("fusedbun_loss_scale", "What the last step's loss was multiplied by.",
                   step.loss_scale->used);
}

void add_checkpoints(Families& families, const RunStatus& status) {
  families.counter("fusedbun_checkpoints_total", "Checkpoints that this process has saved.",
                   static_cast<double>(status.checkpoints));
  if (!status.last_checkpoint) return;
  const SavedState& saved = *status.last_checkpoint;
  families.gauge("fusedbun_checkpoint_last_success_timestamp_seconds",
                 "Unix time when the newest checkpoint of this process was durable.",
                 saved.unix_time);
  families.gauge("fusedbun_checkpoint_step", "Job steps done when it was taken.",
                 static_cast<double>(saved.job_step));
  families.gauge("fusedbun_checkpoint_duration_seconds",
                 "From the copy of the state until it was durable; training goes on meanwhile.",
                 saved.seconds);
  families.gauge("fusedbun_checkpoint_bytes", "Of all ranks.", static_cast<double>(saved.bytes));
}

void add_rank(Families& families, const plan::RankStatus& rank) {
  const std::string number = std::to_string(rank.rank);
  const Labels label = {{"rank", number}};
  families.gauge("fusedbun_rank_info", "Where a rank is; always 1.", 1,
                 {{"rank", number},
                  {"host", rank.host},
                  {"pid", std::to_string(rank.pid)},
                  {"device", rank.device}});
  const bool is_heard =
      rank.liveness == plan::Liveness::alive || rank.liveness == plan::Liveness::stalled;
  families.gauge("fusedbun_rank_alive", "1 while its heartbeats come, 0: it is late or lost.",
                 is_heard ? 1 : 0, label);
  families.gauge("fusedbun_rank_step", "The job step that the rank is in.",
                 static_cast<double>(rank.job_step), label);
  families.gauge("fusedbun_rank_resident_memory_bytes", "Of its process.",
                 static_cast<double>(rank.usage.resident_bytes), label);
  families.gauge("fusedbun_shard_bytes", "Optimizer state that the rank holds.",
                 static_cast<double>(rank.shard_bytes), label);
  if (rank.heartbeat_age_ms)
    families.gauge("fusedbun_peer_heartbeat_age_seconds",
                   "Since rank 0 has heard of the rank; of rank 0 itself 0.",
                   static_cast<double>(*rank.heartbeat_age_ms) / 1e3, label);
  if (rank.usage.sent_bytes)
    families.counter("fusedbun_comm_sent_bytes_total",
                     "Bytes of messages to other ranks; what ranks of a host read in shared memory "
                     "is none.",
                     static_cast<double>(*rank.usage.sent_bytes), label);
  for (int phase = 0; phase < plan::kPhaseCount; ++phase) {
    const int64_t spent_us = rank.usage.phase_us[static_cast<size_t>(phase)];
    if (spent_us == 0) continue;
    const auto named = plan::find_phase(static_cast<uint8_t>(phase));
    families.counter("fusedbun_phase_seconds_total",
                     "What the rank's training thread did; reduce_scatter, agreement, all_gather "
                     "and step_message are waits for other ranks.",
                     static_cast<double>(spent_us) / 1e6,
                     {{"rank", number}, {"phase", std::string(plan::name_of(*named))}});
  }
}

void add_process(Families& families, const ProcessUse& use) {
  families.gauge("process_start_time_seconds", "Unix time when rank 0's process began.",
                 use.start_unix_time);
  families.counter("process_cpu_seconds_total", "Processor time of rank 0's process.",
                   use.cpu_seconds);
  families.gauge("process_resident_memory_bytes", "Of rank 0's process.",
                 static_cast<double>(use.resident_bytes));
  families.gauge("process_open_fds", "Of rank 0's process.",
                 static_cast<double>(use.open_descriptors));
}

}  // namespace

std::vector<MetricFamily> families_of(const RunStatus& status) {
  Families families;
  add_versions(families, status.versions);
  if (status.facts) add_facts(families, *status.facts);
  families.counter("fusedbun_steps_total", "Job steps of this process.",
                   static_cast<double>(status.steps));
  families.counter("fusedbun_tokens_total", "Tokens that this process's steps were about.",
                   static_cast<double>(status.tokens));
  families.histogram("fusedbun_step_duration_seconds", "Job steps as rank 0 sees them.",
                     status.step_durations);
  if (status.last_step) add_step(families, status, *status.last_step);
  if (status.last_validation) {
    families.gauge("fusedbun_validation_loss", "Of the last validation, nats per token.",
                   status.last_validation->loss);
    families.gauge("fusedbun_validation_step", "Job steps done before it.",
                   static_cast<double>(status.last_validation->step));
  }
  if (status.facts && status.facts->keeps_checkpoints) add_checkpoints(families, status);
  for (const plan::RankStatus& rank : status.ranks) add_rank(families, rank);
  add_process(families, status.process);
  return families.take();
}

}  // namespace fusedbun::monitoring

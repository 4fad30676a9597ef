#include "fusedbun/launcher/train/health_probe.h"

#include <mutex>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/job.h"
#ifdef FUSEDBUN_HAS_CONTROL
#include "fusedbun/dist/control/health_port.h"
#endif

namespace fusedbun::train {

#ifdef FUSEDBUN_HAS_CONTROL

class HealthProbe::Served {
 public:
  explicit Served(int port) : port_(port, [this] { return is_progressing(); }) {}

  int port() const { return port_.port(); }
  void watch(const Job* job) {
    const std::lock_guard lock(mutex_);
    job_ = job;
  }

 private:
  bool is_progressing() {
    const std::lock_guard lock(mutex_);
    if (job_ == nullptr) return true;
    const std::vector<plan::RankStatus> ranks = job_->ranks();
    if (ranks.empty()) return true;  // without heartbeats nobody watches over steps
    const plan::Liveness own = ranks.at(static_cast<size_t>(job_->rank())).liveness;
    return own != plan::Liveness::stalled && own != plan::Liveness::lost;
  }

  std::mutex mutex_;
  const Job* job_ = nullptr;
  control::HealthPort port_;  ///< its thread uses the above
};

#else

class HealthProbe::Served {
 public:
  explicit Served(int) {
    throw ConfigError(
        "--health-port: this build has no gRPC (FUSEDBUN_WITH_CONTROL is off): leave it out");
  }
  int port() const { return 0; }
  void watch(const Job*) {}
};

#endif

HealthProbe::HealthProbe(std::optional<int> port, int local_rank) {
  if (port && local_rank == 0) served_ = std::make_unique<Served>(*port);
}

HealthProbe::~HealthProbe() = default;

std::optional<int> HealthProbe::port() const {
  return served_ ? std::optional(served_->port()) : std::nullopt;
}

HealthProbe::WatchedJob::WatchedJob(HealthProbe& probe, const Job& job) : probe_(probe) {
  if (probe_.served_) probe_.served_->watch(&job);
}

HealthProbe::WatchedJob::~WatchedJob() {
  if (probe_.served_) probe_.served_->watch(nullptr);
}

}  // namespace fusedbun::train

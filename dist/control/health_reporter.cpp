#include "fusedbun/dist/control/health_reporter.h"

namespace fusedbun::control {

HealthReporter::HealthReporter(grpc::HealthCheckServiceInterface& service, Sources sources,
                               std::chrono::milliseconds interval)
    : service_(service),
      sources_(std::move(sources)),
      interval_(interval),
      serving_(sources_.names.size(), false) {
  // The names are known from the first call on.
  for (const Name& each : sources_.names) service_.SetServingStatus(each.name, false);
  thread_ = std::thread([this] { run(); });
}

HealthReporter::~HealthReporter() {
  stop();
}

void HealthReporter::update() {
  const std::lock_guard lock(mutex_);
  if (!stopped_) publish();
}

void HealthReporter::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
    service_.Shutdown();
  }
  woken_.notify_all();
  thread_.join();
}

void HealthReporter::publish() {
  // A watcher hears of every call of SetServingStatus, so only turns are told.
  for (size_t at = 0; at < serving_.size(); ++at) {
    const bool is_serving = sources_.names[at].is_serving();
    if (is_serving == serving_[at]) continue;
    serving_[at] = is_serving;
    service_.SetServingStatus(sources_.names[at].name, is_serving);
  }
}

void HealthReporter::run() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    lock.unlock();  // it may come to update()
    sources_.looked();
    lock.lock();
    if (stopped_) return;
    publish();
    woken_.wait_for(lock, interval_);
  }
}

}  // namespace fusedbun::control

#include "fusedbun/dist/control/health_reporter.h"

namespace fusedbun::control {

HealthReporter::HealthReporter(grpc::HealthCheckServiceInterface& service, Sources sources,
                               std::chrono::milliseconds interval)
    : service_(service), sources_(std::move(sources)), interval_(interval) {
  service_.SetServingStatus(kControlHealthName,
                            false);  // both names are known from the first call on
  service_.SetServingStatus(kProgressHealthName, false);
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
  sources_.tell_turns();
  // A watcher hears of every call of SetServingStatus, so only turns are told.
  const bool control = sources_.accepts_changes();
  if (control != control_serving_)
    service_.SetServingStatus(kControlHealthName, control_serving_ = control);
  const bool progress = sources_.is_progressing();
  if (progress != progress_serving_)
    service_.SetServingStatus(kProgressHealthName, progress_serving_ = progress);
}

void HealthReporter::run() {
  std::unique_lock lock(mutex_);
  while (!stopped_) {
    publish();
    woken_.wait_for(lock, interval_);
  }
}

}  // namespace fusedbun::control

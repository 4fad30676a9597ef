#include "fusedbun/dist/control/metrics_streams.h"

namespace fusedbun::control {

void MetricsStreams::publish(SharedSample sample) {
  const std::lock_guard lock(mutex_);
  if (ended_) return;
  for (Reader* reader : readers_) reader->push(sample);
  past_.push_back(std::move(sample));
  if (past_.size() > kRing) past_.pop_front();
  published_.notify_all();
}

void MetricsStreams::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  published_.notify_all();
}

MetricsStreams::Reader::Reader(MetricsStreams& streams) : streams_(streams) {
  const std::lock_guard lock(streams_.mutex_);
  ring_ = streams_.past_;
  streams_.readers_.push_back(this);
}

MetricsStreams::Reader::~Reader() {
  const std::lock_guard lock(streams_.mutex_);
  streams_.readers_.remove(this);
}

void MetricsStreams::Reader::push(const SharedSample& sample) {
  ring_.push_back(sample);
  if (ring_.size() <= kRing) return;
  ring_.pop_front();
  ++dropped_;
}

MetricsStreams::Reader::Next MetricsStreams::Reader::next(std::chrono::milliseconds wait) {
  std::unique_lock lock(streams_.mutex_);
  streams_.published_.wait_for(lock, wait, [&] { return !ring_.empty() || streams_.ended_; });
  Next next{.sample = nullptr, .dropped = dropped_};
  if (!ring_.empty()) {
    next.outcome = Outcome::sample;
    next.sample = std::move(ring_.front());
    ring_.pop_front();
  } else if (streams_.ended_) {
    next.outcome = Outcome::ended;
  }
  return next;
}

}  // namespace fusedbun::control

#pragma once
// MetricsStreams: samples of finished steps, from the training loop to its readers. Each reader has a ring of its own:
// a slow one loses the oldest and is told how many, and publish() never waits for one.
//
// Thread safety: all members, from any thread. A Reader belongs to one thread and does not outlive the streams.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::control {

struct TimedSample {
  v1::MetricsSample message;
  int64_t steady_us = 0;  ///< when its step ended, on a clock that nobody sets
};
using SharedSample = std::shared_ptr<const TimedSample>;

class MetricsStreams {
 public:
  static constexpr size_t kRing = 256;

  void publish(SharedSample sample);
  /// Nothing more will come, and what does is ignored: readers read to the end.
  void end();

  class Reader {
   public:
    /// Begins with what is kept of the past, the newest kRing samples.
    explicit Reader(MetricsStreams& streams);
    ~Reader();
    Reader(const Reader&) = delete;  // is known to the streams by its address

    enum class Outcome { sample, nothing, ended };
    struct Next {
      Outcome outcome = Outcome::nothing;
      SharedSample sample;
      int64_t dropped = 0;  ///< so far
    };
    /// Waits up to `wait`.
    Next next(std::chrono::milliseconds wait);

   private:
    friend MetricsStreams;
    void push(const SharedSample& sample);  ///< with the streams' mutex held

    MetricsStreams& streams_;
    std::deque<SharedSample> ring_;
    int64_t dropped_ = 0;
  };

 private:
  mutable std::mutex mutex_;
  std::condition_variable published_;
  std::list<Reader*> readers_;
  std::deque<SharedSample> past_;
  bool ended_ = false;
};

}  // namespace fusedbun::control

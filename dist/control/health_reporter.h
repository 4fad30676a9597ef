#pragma once
// HealthReporter: what grpc.health.v1 says about a job. "": the process lives. And the names that it is given:
// "fusedbun.control.v1.TrainingControl" (changes are taken), "fusedbun.progress" (steps finish). gRPC serves Check and Watch;
// this object tells it when an answer turns, from a thread of its own, because a stall is the absence of events.
//
// Thread safety: update() and stop() may be called from any thread.
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace fusedbun::control {

inline constexpr const char* kControlHealthName = "fusedbun.control.v1.TrainingControl";
inline constexpr const char* kProgressHealthName = "fusedbun.progress";

class HealthReporter {
 public:
  struct Name {
    const char* name;
    std::function<bool()> is_serving;
  };
  struct Sources {
    std::vector<Name> names;
    std::function<void()> looked = [] {};  ///< called each time, without the lock
  };

  /// Looks every `interval`, and at once on update(). `service` outlives this object.
  HealthReporter(grpc::HealthCheckServiceInterface& service, Sources sources,
                 std::chrono::milliseconds interval);
  ~HealthReporter();
  HealthReporter(const HealthReporter&) = delete;  // owns a thread
  HealthReporter& operator=(const HealthReporter&) = delete;

  /// Publishes what holds now, before it returns.
  void update();
  /// All names turn NOT_SERVING, for good.
  void stop();

 private:
  void publish();  ///< with mutex_ held
  void run();

  grpc::HealthCheckServiceInterface& service_;
  const Sources sources_;
  const std::chrono::milliseconds interval_;
  std::mutex mutex_;
  std::condition_variable woken_;
  bool stopped_ = false;
  std::vector<bool> serving_;  ///< [name]
  std::thread thread_;
};

}  // namespace fusedbun::control

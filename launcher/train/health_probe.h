#pragma once
// HealthProbe: what kubelet asks a pod, at --health-port: does the process live, do steps end. The first rank of each host serves it, since
// each host is asked for itself; it answers for its own rank.
//
// Thread safety: one thread at a time.
#include <memory>
#include <optional>

namespace fusedbun {

class Job;

namespace train {

class HealthProbe {
 public:
  /// Serves nothing without a port, and on other ranks than the first of a host. Throws ConfigError in a build without gRPC,
  /// UnavailableError (69) if the port is taken.
  HealthProbe(std::optional<int> port, int local_rank);
  ~HealthProbe();
  HealthProbe(const HealthProbe&) = delete;  // owns a listener

  /// Nothing if this rank serves none.
  std::optional<int> port() const;

  /// While it lives, progress is that of the job's rank; before and after it, what has not begun is not stalled.
  class WatchedJob {
   public:
    WatchedJob(HealthProbe& probe, const Job& job);
    ~WatchedJob();
    WatchedJob(const WatchedJob&) = delete;  // lets go of the job once

   private:
    HealthProbe& probe_;
  };

 private:
  class Served;
  std::unique_ptr<Served> served_;
};

}  // namespace train
}  // namespace fusedbun

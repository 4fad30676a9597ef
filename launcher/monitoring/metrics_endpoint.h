#pragma once
// MetricsEndpoint: GET /metrics of a run, for Prometheus, served by rank 0 for all ranks: it hears of the others by their heartbeats, so a
// job is one target whatever its size, and nothing is added to a step. A build without prometheus-cpp has none.
//
// Invariants: 1. A scrape never makes the training thread wait for longer than it takes to copy a RunStatus. 2. It serves from its
// constructor on, before ranks have met, until its destructor.
//
// Needs no headers of prometheus-cpp and httplib. Thread safety: all members may be called from any thread.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fusedbun/launcher/monitoring/run_observer.h"
#include "fusedbun/launcher/monitoring/run_status.h"

namespace fusedbun::monitoring {

struct ListenOptions {
  std::string address = "127.0.0.1";  ///< an IP address of this host, or "localhost"
  int port = 0;                       ///< 0: a free one
};
/// "127.0.0.1", "::1". Throws ConfigError for an address that is no IP address.
std::string ip_of(const ListenOptions& listen);
/// Whether ip_of()'s text is an IPv6 address.
inline bool is_v6(const std::string& ip) {
  return ip.find(':') != ip.npos;
}
/// "127.0.0.1:9400", "[::1]:9400". Throws as ip_of().
std::string text_of(const ListenOptions& listen);

/// Throws ConfigError where this build has no endpoint.
void require_metrics_endpoint();

class MetricsEndpoint final : public RunObserver {
 public:
  /// Throws UnavailableError (69) where something listens there already, PermissionError (77) for a port that needs root, ConfigError
  /// (78) for an address that this host has not.
  MetricsEndpoint(const ListenOptions& listen, run_folder::NamedTexts versions);
  ~MetricsEndpoint() override;
  MetricsEndpoint(const MetricsEndpoint&) = delete;  // owns a listener and its threads

  /// "http://127.0.0.1:9400/metrics"
  std::string url() const;

  void begin(const RunFacts& facts);
  void step_done(const StepMetrics& metrics) override;
  void validated(int64_t step, double loss) override;
  void checkpoint_saved(int64_t job_step, int64_t bytes, double seconds);

  /// While it lives, each scrape asks `ranks`, by a thread of the endpoint.
  class WatchedRanks {
   public:
    using Ask = std::function<std::vector<plan::RankStatus>()>;
    WatchedRanks(MetricsEndpoint& endpoint, Ask ranks);
    ~WatchedRanks();
    WatchedRanks(const WatchedRanks&) = delete;  // takes its function back once

   private:
    MetricsEndpoint& endpoint_;
  };

 private:
  class Served;
  std::unique_ptr<Served> served_;
};

}  // namespace fusedbun::monitoring

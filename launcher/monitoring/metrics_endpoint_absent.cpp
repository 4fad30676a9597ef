// MetricsEndpoint of a build without prometheus-cpp: there is none, and asking for one says so.
#include "fusedbun/core/error.h"
#include "fusedbun/launcher/monitoring/metrics_endpoint.h"

namespace fusedbun::monitoring {

class MetricsEndpoint::Served {};

void require_metrics_endpoint() {
  throw ConfigError(
      "--metrics-port: this build serves no metrics, since it was built without prometheus-cpp "
      "(FUSEDBUN_WITH_PROMETHEUS); leave the flag out, or install prometheus-cpp-dev and "
      "libcpp-httplib-dev and build anew");
}

MetricsEndpoint::MetricsEndpoint(const ListenOptions&, run_folder::NamedTexts) {
  require_metrics_endpoint();
}
MetricsEndpoint::~MetricsEndpoint() = default;
std::string MetricsEndpoint::url() const {
  return {};
}
void MetricsEndpoint::begin(const RunFacts&) {}
void MetricsEndpoint::step_done(const StepMetrics&) {}
void MetricsEndpoint::validated(int64_t, double) {}
void MetricsEndpoint::checkpoint_saved(int64_t, int64_t, double) {}
MetricsEndpoint::WatchedRanks::WatchedRanks(MetricsEndpoint& endpoint, Ask) : endpoint_(endpoint) {}
MetricsEndpoint::WatchedRanks::~WatchedRanks() = default;

}  // namespace fusedbun::monitoring

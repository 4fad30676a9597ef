#include "fusedbun/launcher/monitoring/metrics_endpoint.h"

#include <arpa/inet.h>
#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/launcher/monitoring/metric_families.h"
#include "fusedbun/launcher/monitoring/unix_time.h"

namespace fusedbun::monitoring {
namespace {

// A scraper that reads slowly holds a thread, at most so long.
constexpr const char* kThreads = "4";
constexpr const char* kRequestTimeoutMs = "5000";

/// Binds it once and lets it go: the HTTP server says only that it could not, and not why.
void require_free(const std::string& text, const ListenOptions& listen) {
  const bool is_v6 = text.front() == '[';
  sockaddr_storage address{};
  socklen_t length = 0;
  if (is_v6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    v6 = {.sin6_family = AF_INET6, .sin6_port = htons(static_cast<uint16_t>(listen.port))};
    ::inet_pton(AF_INET6, text.substr(1, text.rfind(']') - 1).c_str(), &v6.sin6_addr);
    length = sizeof v6;
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(listen.port));
    ::inet_pton(AF_INET, text.substr(0, text.rfind(':')).c_str(), &v4.sin_addr);
    length = sizeof v4;
  }
  const int descriptor = ::socket(is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  ::setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const bool is_free = ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                       ::listen(descriptor, 1) == 0;
  const int problem = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (is_free) return;
  const std::string what = "cannot serve metrics on " + text + " of " + host_name() + ": ";
  FUSEDBUN_REQUIRE(problem != EADDRINUSE, UnavailableError,
                   what +
                       "something listens there already; give another --metrics-port, or 0 "
                       "for a free one");
  FUSEDBUN_REQUIRE(problem != EACCES, PermissionError,
                   what + "ports below 1024 need root; give another --metrics-port");
  throw ConfigError(what + std::strerror(problem) +
                    "; --metrics-address takes an address of this host");
}

std::vector<std::string> server_options(const std::string& address) {
  return {"listening_ports",    address,           "num_threads",       kThreads,
          "request_timeout_ms", kRequestTimeoutMs, "enable_keep_alive", "no"};
}

}  // namespace

void require_metrics_endpoint() {}

/// What the HTTP server's threads see.
class MetricsEndpoint::Served final : public prometheus::Collectable {
 public:
  Served(const ListenOptions& listen, run_folder::NamedTexts versions)
      : text_(monitoring::text_of(listen)) {
    status_.versions = std::move(versions);
    require_free(text_, listen);
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(server_options(text_));
    } catch (const std::exception& error) {
      throw UnavailableError("cannot serve metrics on " + text_ + " of " + host_name() + ": " +
                             error.what());
    }
    text_ = monitoring::text_of(
        {.address = listen.address, .port = exposer_->GetListeningPorts().front()});
  }

  /// From now on until the end of the server it holds on to `self`.
  void serve(const std::shared_ptr<Served>& self) { exposer_->RegisterCollectable(self); }
  void stop() { exposer_.reset(); }
  const std::string& text() const { return text_; }

  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<plan::RankStatus> ranks;
    {
      const std::lock_guard lock(ranks_mutex_);
      if (ask_ranks_) ranks = ask_ranks_();
    }
    RunStatus status;
    {
      const std::lock_guard lock(mutex_);
      status = status_;
    }
    status.ranks = std::move(ranks);
    status.process = process_use();
    return families_of(status);
  }

  template <class Change>
  void change(const Change& change) {
    const std::lock_guard lock(mutex_);
    change(status_);
  }

  /// When it returns the function before is not running and will not be called any more.
  void ask(WatchedRanks::Ask ranks) {
    const std::lock_guard lock(ranks_mutex_);
    ask_ranks_ = std::move(ranks);
  }

 private:
  std::string text_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  mutable std::mutex mutex_;  // of status_
  RunStatus status_;
  mutable std::mutex ranks_mutex_;
  WatchedRanks::Ask ask_ranks_;
};

MetricsEndpoint::MetricsEndpoint(const ListenOptions& listen, run_folder::NamedTexts versions)
    : served_(std::make_shared<Served>(listen, std::move(versions))) {
  served_->serve(served_);
}

MetricsEndpoint::~MetricsEndpoint() {
  served_->stop();
}

std::string MetricsEndpoint::url() const {
  return "http://" + served_->text() + "/metrics";
}

void MetricsEndpoint::begin(const RunFacts& facts) {
  served_->change([&](RunStatus& status) { status.facts = facts; });
}

void MetricsEndpoint::step_done(const StepMetrics& metrics) {
  const double now = unix_time();
  served_->change([&](RunStatus& status) {
    status.last_step = metrics;
    status.last_step_unix_time = now;
    ++status.steps;
    status.tokens += metrics.tokens;
    status.step_durations.add(metrics.seconds);
  });
}

void MetricsEndpoint::validated(int64_t step, double loss) {
  served_->change([&](RunStatus& status) { status.last_validation = {step, loss}; });
}

void MetricsEndpoint::checkpoint_saved(int64_t job_step, int64_t bytes, double seconds) {
  const double now = unix_time();
  served_->change([&](RunStatus& status) {
    status.last_checkpoint = {job_step, bytes, seconds, now};
    ++status.checkpoints;
  });
}

MetricsEndpoint::WatchedRanks::WatchedRanks(MetricsEndpoint& endpoint, Ask ranks)
    : endpoint_(endpoint) {
  endpoint_.served_->ask(std::move(ranks));
}

MetricsEndpoint::WatchedRanks::~WatchedRanks() {
  endpoint_.served_->ask(nullptr);
}

}  // namespace fusedbun::monitoring

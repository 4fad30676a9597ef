#include "fusedbun/launcher/monitoring/metrics_endpoint.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <httplib.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/launcher/monitoring/metric_families.h"
#include "fusedbun/launcher/monitoring/unix_time.h"

namespace fusedbun::monitoring {
namespace {

// A scraper that reads or writes slowly holds a thread, for so long at each read and write.
constexpr size_t kThreads = 4;
constexpr std::chrono::seconds kPatience{2};
constexpr size_t kRequestBytesMax = 4 << 10;
constexpr const char* kTextFormat = "text/plain; version=0.0.4; charset=utf-8";

/// Without SO_REUSEPORT, which is httplib's default: two runs would share a port.
void set_listener_options(int listener) {
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  ::fcntl(listener, F_SETFD, FD_CLOEXEC);
}

/// Binds it once and lets it go: the HTTP server says only that it could not, and not why.
void require_free(const ListenOptions& listen) {
  const std::string ip = ip_of(listen);
  sockaddr_storage address{};
  socklen_t length = 0;
  if (is_v6(ip)) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(static_cast<uint16_t>(listen.port));
    ::inet_pton(AF_INET6, ip.c_str(), &v6.sin6_addr);
    length = sizeof v6;
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(listen.port));
    ::inet_pton(AF_INET, ip.c_str(), &v4.sin_addr);
    length = sizeof v4;
  }
  const int descriptor = ::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  set_listener_options(descriptor);
  const bool is_free = ::bind(descriptor, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                       ::listen(descriptor, 1) == 0;
  const int problem = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (is_free) return;
  const std::string what =
      "cannot serve metrics on " + text_of(listen) + " of " + host_name() + ": ";
  FUSEDBUN_REQUIRE(problem != EADDRINUSE, UnavailableError,
                   what +
                       "something listens there already; give another --metrics-port, or 0 "
                       "for a free one");
  FUSEDBUN_REQUIRE(problem != EACCES, PermissionError,
                   what + "ports below 1024 need root; give another --metrics-port");
  throw ConfigError(what + std::strerror(problem) +
                    "; --metrics-address takes an address of this host");
}

/// Ends all connections of this process that came in at `port`: httplib waits for their ends, which are a client's to choose.
void cut_off_clients(int port) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    const int descriptor = std::stoi(entry.path().filename());
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) != 0) continue;
    const bool is_v6 = address.ss_family == AF_INET6;
    if (!is_v6 && address.ss_family != AF_INET) continue;
    const in_port_t at = is_v6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                               : reinterpret_cast<sockaddr_in&>(address).sin_port;
    if (ntohs(at) == port) ::shutdown(descriptor, SHUT_RDWR);
  }
}

}  // namespace

void require_metrics_endpoint() {}

/// What the HTTP server's threads see.
class MetricsEndpoint::Served {
 public:
  Served(const ListenOptions& listen, run_folder::NamedTexts versions) {
    status_.versions = std::move(versions);
    require_free(listen);
    const std::string ip = ip_of(listen);
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_socket_options(set_listener_options);
    server_.set_keep_alive_max_count(1);
    server_.set_keep_alive_timeout(kPatience.count());
    server_.set_read_timeout(kPatience);
    server_.set_write_timeout(kPatience);
    server_.set_payload_max_length(kRequestBytesMax);
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(prometheus::TextSerializer().Serialize(families_of(now())), kTextFormat);
    });
    port_ = listen.port == 0                        ? server_.bind_to_any_port(ip)
            : server_.bind_to_port(ip, listen.port) ? listen.port
                                                    : -1;
    FUSEDBUN_REQUIRE(port_ > 0, UnavailableError,
                     "cannot serve metrics on " + monitoring::text_of(listen) + " of " +
                         host_name() +
                         ": another process was faster; give another --metrics-port, or 0 for a "
                         "free one");
    text_ = monitoring::text_of({.address = listen.address, .port = port_});
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // A server that does not run yet cannot be stopped.
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ~Served() {
    server_.stop();
    cut_off_clients(port_);
    thread_.join();
  }

  const std::string& text() const { return text_; }

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
  RunStatus now() {
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
    return status;
  }

  std::mutex mutex_;  // of status_
  RunStatus status_;
  std::mutex ranks_mutex_;
  WatchedRanks::Ask ask_ranks_;
  httplib::Server server_;
  int port_ = 0;
  std::string text_;
  std::thread thread_;
};

MetricsEndpoint::MetricsEndpoint(const ListenOptions& listen, run_folder::NamedTexts versions)
    : served_(std::make_unique<Served>(listen, std::move(versions))) {}

MetricsEndpoint::~MetricsEndpoint() = default;

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

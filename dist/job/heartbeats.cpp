#include "fusedbun/dist/job/heartbeats.h"

#include <unistd.h>

#include <climits>
#include <cstring>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/records.h"

namespace fusedbun {
namespace {

constexpr size_t kTextBytes = 256;

/// What rank 0 tells the others. Texts end with 0.
struct Offer {
  health::Token token = {};
  int64_t pid = 0;
  int32_t local_rank = 0;
  uint32_t port = 0;  ///< 0: rank 0 cannot listen, and `host` says why
  char host[kTextBytes] = {};
  char name[kTextBytes] = {};
  char device[16] = {};
  char run_dir[PATH_MAX] = {};
};

struct Answer {
  int32_t failed = 0;
  char reason[kTextBytes - 4] = {};
};

template <size_t kBytes>
void put(char (&to)[kBytes], const std::string& text) {
  std::strncpy(to, text.c_str(), kBytes - 1);
}

/// Under which address the other ranks reach rank 0.
std::string address_of_rank_0(const plan::Identity& identity, bool one_host) {
  if (one_host) return "127.0.0.1";
  return identity.master_addr.empty() ? host_name() : identity.master_addr;
}

Offer make_offer(const health::ListeningSocket& listener, const health::RankCard& me,
                 const std::string& address, const std::filesystem::path& run_dir) {
  Offer offer;
  offer.token = health::random_token();
  offer.port = listener.port;
  offer.pid = me.pid;
  offer.local_rank = me.local_rank;
  put(offer.host, address);
  put(offer.name, me.host);
  put(offer.device, me.device);
  const std::string folder = run_dir.empty() ? "" : std::filesystem::absolute(run_dir).string();
  if (folder.size() < sizeof(offer.run_dir)) put(offer.run_dir, folder);
  return offer;
}

health::Invitation invitation_of(const Offer& offer) {
  return {.host = offer.host,
          .port = static_cast<uint16_t>(offer.port),
          .token = offer.token,
          .rank_0 = {.rank = 0,
                     .local_rank = offer.local_rank,
                     .pid = offer.pid,
                     .host = offer.name,
                     .device = offer.device}};
}

}  // namespace

Heartbeats start_heartbeats(const plan::Identity& identity, Connections& connections,
                            health::HeartbeatOptions options, const std::filesystem::path& run_dir,
                            std::chrono::milliseconds timeout) {
  comm::Communicator& host = *connections.host;
  options.me.rank = host.rank();
  options.me.pid = ::getpid();
  options.me.host = host_name();
  options.world_size = host.size();

  Heartbeats started;
  health::ListeningSocket listener;
  Offer offer;
  Answer mine;
  const auto attempt = [&](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      mine.failed = 1;
      put(mine.reason, "rank " + std::to_string(host.rank()) + ": " + error.what());
    }
  };
  if (host.rank() == 0) {
    attempt([&] {
      if (host.size() > 1) listener = health::listen_on_free_port(connections.one_host);
      offer = make_offer(listener, options.me, address_of_rank_0(identity, connections.one_host),
                         run_dir);
    });
  }
  offer = comm::broadcast_record(host, offer);
  if (host.rank() != 0 && offer.port != 0) {
    attempt([&] {
      started.heartbeat =
          std::make_unique<health::Heartbeat>(options, invitation_of(offer), timeout);
    });
  }
  for (const Answer& answer : comm::gather_records(host, mine)) {
    if (answer.failed == 0) continue;
    return {.heartbeat = nullptr, .reason = answer.reason, .run_dir = {}};
  }
  if (host.rank() == 0) {
    started.heartbeat =
        std::make_unique<health::Heartbeat>(options, std::move(listener), offer.token);
  }
  started.run_dir = offer.run_dir;
  return started;
}

}  // namespace fusedbun

#include "fusedbun/dist/job/heartbeats.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun {
namespace {

/// What rank 0 tells the others.
struct Offer {
  health::Invitation invitation;  ///< port 0: rank 0 cannot listen
  std::string run_dir;            ///< absolute; empty: none
};

/// Under which address the other ranks reach rank 0.
std::string address_of_rank_0(const plan::Identity& identity, bool one_host) {
  if (one_host) return "127.0.0.1";
  return identity.master_addr.empty() ? host_name() : identity.master_addr;
}

Offer make_offer(const health::ListeningSocket& listener, const health::RankCard& me,
                 const std::string& address, const std::filesystem::path& run_dir) {
  return {.invitation = {.host = address,
                         .port = listener.port,
                         .token = health::random_token(),
                         .rank_0 = me},
          .run_dir = run_dir.empty() ? "" : std::filesystem::absolute(run_dir).string()};
}

Offer broadcast_offer(comm::Communicator& host, const Offer& of_rank_0) {
  struct Numbers {
    health::Token token;
    int64_t pid;
    int32_t local_rank;
    uint16_t port;
  };
  const health::Invitation& offered = of_rank_0.invitation;
  const health::RankCard& card = offered.rank_0;
  const Numbers numbers = comm::broadcast_object(
      host, Numbers{offered.token, card.pid, card.local_rank, offered.port}, 0);
  const std::vector<std::string> texts =
      comm::broadcast_texts(host, {offered.host, card.host, card.device, of_rank_0.run_dir}, 0);
  return {.invitation = {.host = texts[0],
                         .port = numbers.port,
                         .token = numbers.token,
                         .rank_0 = {.rank = 0,
                                    .local_rank = numbers.local_rank,
                                    .pid = numbers.pid,
                                    .host = texts[1],
                                    .device = texts[2]}},
          .run_dir = texts[3]};
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
  std::string problem;  // of this rank
  const auto attempt = [&](const auto& action) {
    try {
      action();
    } catch (const Error& error) {
      problem = "rank " + std::to_string(host.rank()) + ": " + error.what();
    }
  };
  if (host.rank() == 0) {
    attempt([&] {
      if (host.size() > 1) listener = health::listen_on_free_port(connections.one_host);
      offer = make_offer(listener, options.me, address_of_rank_0(identity, connections.one_host),
                         run_dir);
    });
  }
  offer = broadcast_offer(host, offer);
  if (host.rank() != 0 && offer.invitation.port != 0) {
    attempt([&] {
      started.heartbeat = std::make_unique<health::Heartbeat>(options, offer.invitation, timeout);
    });
  }
  for (const std::string& each : comm::all_gather_text(host, problem)) {
    if (each.empty()) continue;
    return {.heartbeat = nullptr, .reason = each, .run_dir = {}};
  }
  if (host.rank() == 0) {
    started.heartbeat =
        std::make_unique<health::Heartbeat>(options, std::move(listener), offer.invitation.token);
  }
  started.run_dir = offer.run_dir;
  return started;
}

}  // namespace fusedbun

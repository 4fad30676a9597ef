#include "fusedbun/dist/job/heartbeats.h"

#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/health/proof.h"

namespace fusedbun {
namespace {

/// What rank 0 tells the others.
struct Offer {
  health::Rendezvous rendezvous;  ///< port 0: rank 0 cannot listen
  std::string run_dir;            ///< absolute; empty: none
};

/// While a rank tries to join, the others wait in a collective: it must have given up well before they do.
std::chrono::milliseconds joining_budget(std::chrono::milliseconds timeout) {
  return std::min<std::chrono::milliseconds>(std::chrono::seconds(10), timeout / 4);
}

Offer broadcast_offer(comm::Communicator& host, const Offer& of_rank_0) {
  struct Numbers {
    health::Token token;
    int64_t pid;
    int32_t local_rank;
    uint16_t port;
  };
  const health::Rendezvous& offered = of_rank_0.rendezvous;
  const health::RankInfo& info = offered.rank_0;
  const Numbers numbers = comm::broadcast_object(
      host, Numbers{offered.token, info.pid, info.local_rank, offered.port}, 0);
  std::vector<std::string> texts = {info.host, info.device, of_rank_0.run_dir};
  texts.insert(texts.end(), offered.addresses.begin(), offered.addresses.end());
  texts = comm::broadcast_texts(host, texts, 0);
  return {.rendezvous = {.addresses = {texts.begin() + 3, texts.end()},
                         .port = numbers.port,
                         .token = numbers.token,
                         .rank_0 = {.rank = 0,
                                    .local_rank = numbers.local_rank,
                                    .pid = numbers.pid,
                                    .host = texts[0],
                                    .device = texts[1]}},
          .run_dir = texts[2]};
}

}  // namespace

Heartbeats start_heartbeats(Connections& connections, health::HeartbeatOptions options,
                            const std::filesystem::path& run_dir,
                            std::chrono::milliseconds timeout) {
  comm::Communicator& host = *connections.host;
  options.me.rank = host.rank();
  options.me.pid = ::getpid();
  options.me.host = host_name();
  options.world_size = host.size();

  Heartbeats started;
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
    offer.run_dir = run_dir.empty() ? "" : std::filesystem::absolute(run_dir).string();
    attempt([&] {
      health::ListeningSocket listener;
      if (host.size() > 1) {
        health::require_proofs();
        listener = health::listen_on_free_port(connections.one_host);
      }
      const health::Token token = health::random_token();
      offer.rendezvous = {.port = listener.port, .token = token, .rank_0 = options.me};
      if (!connections.one_host) offer.rendezvous.addresses = health::addresses_of_this_host();
      started.heartbeat = std::make_unique<health::Heartbeat>(options, std::move(listener), token);
    });
  }
  offer = broadcast_offer(host, offer);
  if (host.rank() != 0 && offer.rendezvous.port != 0) {
    if (connections.with_rank_0) offer.rendezvous.addresses.emplace_back("127.0.0.1");
    attempt([&] {
      started.heartbeat =
          std::make_unique<health::Heartbeat>(options, offer.rendezvous, joining_budget(timeout));
    });
  }
  for (const std::string& each : comm::all_gather_text(host, problem)) {
    if (each.empty()) continue;
    return {.heartbeat = nullptr, .reason = each, .run_dir = {}};
  }
  started.heartbeat->watch();
  started.run_dir = offer.run_dir;
  return started;
}

}  // namespace fusedbun

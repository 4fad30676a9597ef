#include "fusedbun/dist/comm/gloo.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <numeric>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/gloo_address.h"
#include "fusedbun/dist/comm/gloo_process_group.h"
#include "fusedbun/dist/comm/gloo_transport.h"
#include "fusedbun/dist/comm/message_communicator.h"
#include "fusedbun/dist/comm/sigpipe.h"

namespace fusedbun::comm {
namespace {

constexpr std::chrono::milliseconds kMeetingPauseMax{50};
constexpr std::chrono::milliseconds kRefusalHeardWithin{1000};

/// Connections of a rank to each other rank: the communicator and a few groups of all ranks.
constexpr int kDescriptorsPerPeer = 4;

using StorePtr = c10::intrusive_ptr<c10d::Store>;

std::vector<int> ranks_below(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

std::string rank_text(const GlooOptions& options) {
  return "gloo: rank " + std::to_string(options.rank) + " of " + std::to_string(options.size);
}

class TcpStoreServer final : public StoreServer {
 public:
  /// `loopback`: under which of this host's addresses it is reached here.
  TcpStoreServer(ListeningSocket socket, const std::string& loopback) : port_(socket.port) {
    c10d::TCPStoreOptions server;
    server.port = socket.port;
    server.isServer = true;
    server.waitWorkers = false;
    server.masterListenFd = socket.descriptor;  // the store closes it
    store_ = c10::make_intrusive<c10d::TCPStore>(loopback, server);
  }
  uint16_t port() const override { return port_; }

 private:
  uint16_t port_;
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

StorePtr connect_store(const GlooOptions& options) {
  const std::string where = options.master_addr + ":" + std::to_string(options.master_port);
  const std::string problem =
      wait_for_listener(options.master_addr, options.master_port, options.timeout);
  FUSEDBUN_REQUIRE(problem.empty(), UnavailableError,
                   rank_text(options) + " cannot reach the store at " + where + " within " +
                       std::to_string(options.timeout.count()) + " ms (" + problem +
                       "): is rank 0 running there, and is the port right?");
  c10d::TCPStoreOptions client;
  client.port = options.master_port;
  client.waitWorkers = false;
  client.timeout = options.timeout;
  const auto no_store = [&](const std::string& why) {
    return UnavailableError(rank_text(options) + " found no store behind " + where + " (" + why +
                            "): does another program use the port?");
  };
  // A server of another kind that waits for more would be waited for without end: LibTorch's first question has no time-out.
  // The thread is left behind then, with what it needs.
  std::promise<c10::intrusive_ptr<c10d::TCPStore>> promise;
  auto answer = promise.get_future();
  std::thread([promise = std::move(promise), host = options.master_addr, client]() mutable {
    try {
      promise.set_value(c10::make_intrusive<c10d::TCPStore>(host, client));
    } catch (...) {
      promise.set_exception(std::current_exception());
    }
  }).detach();
  if (answer.wait_for(options.timeout) != std::future_status::ready)
    throw no_store("what listens there does not answer as one");
  try {
    return c10::make_intrusive<c10d::PrefixStore>(options.run_id, answer.get());
  } catch (const std::exception& error) {
    throw no_store(first_line(error));
  }
}

std::string key_of(int rank) {
  return "rank/" + std::to_string(rank);
}

std::string missing_ranks(c10d::Store& store, int size) {
  std::string missing;
  for (int rank = 0; rank < size; ++rank) {
    if (!store.check({key_of(rank)})) missing.append(" ").append(std::to_string(rank));
  }
  return missing;
}

// Ranks that disagree leave with one sentence, that of the first to notice. Who serves the store stays until all who
// came have heard it, because the store leaves with the server.
[[noreturn]] void refuse(c10d::Store& store, const GlooOptions& options, const std::string& why) {
  const std::string first = store.compareSet("refusal", "", why);
  store.set("met", "refused");
  store.add("heard", 1);
  if (options.serve_store && options.rank == 0) {
    const auto deadline = std::chrono::steady_clock::now() + kRefusalHeardWithin;
    try {
      while (store.add("heard", 0) < store.add("came", 0) &&
             std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(kMeetingPauseMax / 10);
      }
    } catch (const c10::Error&) {
      // A second rank 0 on another host: the store that it joined is the first one's, which has left.
    }
  }
  throw ConfigError(first);
}

// Every rank shows itself, so that who is missing or here twice has a name before Gloo waits for all of them. The last
// to come sets the one key that all wait for: the store's work grows with the number of ranks, not with its square.
void meet(c10d::Store& store, const GlooOptions& options) {
  store.add("came", 1);
  const std::string size = std::to_string(options.size);
  const std::string agreed = store.compareSet("size", "", size);
  if (agreed != size) {
    refuse(store, options,
           rank_text(options) + " joined run '" + options.run_id + "', which has " + agreed +
               " ranks: start all ranks with one size");
  }
  if (store.add(key_of(options.rank), 1) != 1) {
    refuse(store, options,
           rank_text(options) + " is there already in run '" + options.run_id +
               "': two processes have this rank, or the run's name is used twice");
  }
  if (store.add("ready", 1) == options.size) store.set("met", "all");
  const auto deadline = std::chrono::steady_clock::now() + options.timeout;
  try {
    store.wait({"met"}, options.timeout);
  } catch (const c10::Error&) {
    if (std::chrono::steady_clock::now() < deadline) throw;
    throw TimeoutError(
        rank_text(options) + " waited " + std::to_string(options.timeout.count()) +
        " ms for the other ranks to start; missing:" + missing_ranks(store, options.size));
  }
  if (store.check({"refusal"})) refuse(store, options, "");
}

using DevicePtr = std::shared_ptr<gloo::transport::Device>;

// Null where $GLOO_SOCKET_IFNAME names none.
DevicePtr device_of_named_interface(const GlooOptions& options) {
  const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface == nullptr || *interface == '\0' || is_loopback(options.master_addr))
    return nullptr;
  try {
    return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  } catch (const std::exception& error) {
    throw ConfigError(rank_text(options) + ": GLOO_SOCKET_IFNAME='" + interface +
                      "' names no interface of this host (" + first_line(error) +
                      "): set it to the name of one, as `ip -br address` lists them, or leave it "
                      "out");
  }
}

// What groups are made with later: the store must be served as long, and one device moves the bytes of all of them. A
// device is a thread that spins whenever another one holds a connection's lock; one for each group fought for the cores
// with the step (a fifth of a small model's step on 2 cores).
struct Rendezvous {
  GlooOptions options;
  std::shared_ptr<StoreServer> server;  // on the rank that serves
  DevicePtr device;
};

std::shared_ptr<PointToPoint> connect_ranks(const StorePtr& store, const Rendezvous& rendezvous,
                                            int rank, int size) {
  const GlooOptions& options = rendezvous.options;
  const auto group_options = c10d::ProcessGroupGloo::Options::create(options.timeout);
  group_options->threads = 1;  // they run collectives, of which there are none
  group_options->devices.push_back(rendezvous.device);
  require_descriptors(rank_text(options), kDescriptorsPerPeer * size, "its connections");
  try {
    return std::make_shared<PointToPointOf<c10d::ProcessGroupGloo>>(
        c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, group_options));
  } catch (const std::exception& error) {
    throw PeerLostError(rank_text(options) + " could not connect to the other ranks (" +
                        first_line(error) +
                        "): can their hosts reach one another on the interface that leads to " +
                        options.master_addr + "?");
  }
}

// A group connects its ranks anew, below a key of its own in the store.
GlooChannel connect_channel(const std::shared_ptr<Rendezvous>& rendezvous, const StorePtr& store,
                            int rank, int size) {
  GlooChannel channel{.owned = rendezvous,
                      .messages = connect_ranks(store, *rendezvous, rank, size),
                      .members = ranks_below(size),
                      .rank = rank};
  channel.group = [rendezvous, store](const std::vector<int>& ranks, int place, int64_t number) {
    return connect_channel(
        rendezvous,
        c10::make_intrusive<c10d::PrefixStore>("group/" + std::to_string(number), store), place,
        static_cast<int>(ranks.size()));
  };
  return channel;
}

// A process group that was handed in cannot make connections: its groups share them, under tags of their own.
constexpr int kWrappedTagBase = 1 << 30;
constexpr TagLayout kWrappedTags{.number_bits = 11, .digest_bits = 13};
constexpr int kWrappedGroupShift = 24;
constexpr int64_t kWrappedGroupsMax = 62;

GlooChannel wrapped_channel(const std::shared_ptr<PointToPoint>& messages, std::vector<int> members,
                            int rank, int64_t number) {
  FUSEDBUN_REQUIRE(number <= kWrappedGroupsMax, ConfigError,
                   "gloo: more than " + std::to_string(kWrappedGroupsMax) +
                       " groups were made from one process group that was handed in");
  GlooChannel channel{.messages = messages,
                      .members = members,
                      .rank = rank,
                      .tag_base = kWrappedTagBase + static_cast<int>(number << kWrappedGroupShift),
                      .tags = kWrappedTags,
                      .is_shared = true};
  channel.group = [messages, members = std::move(members)](const std::vector<int>& ranks, int place,
                                                           int64_t next) {
    std::vector<int> chosen;
    for (const int each : ranks) chosen.push_back(members[static_cast<size_t>(each)]);
    return wrapped_channel(messages, std::move(chosen), place, next);
  };
  return channel;
}

}  // namespace

std::unique_ptr<StoreServer> serve_store(const std::string& address, uint16_t port) {
  return std::make_unique<TcpStoreServer>(listen_on(address, port),
                                          address == "::1" ? address : "127.0.0.1");
}

std::unique_ptr<Communicator> connect_gloo(const GlooOptions& options) {
  FUSEDBUN_REQUIRE(options.size >= 1 && options.rank >= 0 && options.rank < options.size,
                   ConfigError, rank_text(options) + ": there is no such rank");
  ignore_sigpipe();
  // A name that is wrong on all hosts is told by each rank, so before any of them can miss one that left.
  const auto rendezvous = std::make_shared<Rendezvous>(
      Rendezvous{options, nullptr, device_of_named_interface(options)});
  if (options.serve_store && options.rank == 0) {
    rendezvous->server = serve_store(options.master_addr, options.master_port);
  }
  const StorePtr store = connect_store(options);
  try {
    meet(*store, options);
  } catch (const c10::Error& error) {
    throw PeerLostError(rank_text(options) + " lost the store at " + options.master_addr + ":" +
                        std::to_string(options.master_port) + " while the ranks met (" +
                        first_line(error) + "): the process that served it left, and says why");
  }
  if (!rendezvous->device) {
    rendezvous->device = c10d::ProcessGroupGloo::createDeviceForHostname(
        local_address_towards(options.master_addr, options.timeout));
  }
  auto communicator = make_message_communicator(
      make_gloo_transport(connect_channel(rendezvous, store, options.rank, options.size)),
      options.timeout);
  communicator->barrier()
      .wait();  // nobody leaves, and takes the store along, while others still connect
  return communicator;
}

std::unique_ptr<Communicator> wrap_process_group(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                 std::chrono::milliseconds timeout) {
  ignore_sigpipe();
  FUSEDBUN_REQUIRE(group, ConfigError, "gloo: wrap_process_group was given no process group");
  const int rank = group->getRank();
  const int size = group->getSize();
  const auto messages = std::make_shared<PointToPointOf<c10d::ProcessGroup>>(std::move(group));
  return make_message_communicator(
      make_gloo_transport(wrapped_channel(messages, ranks_below(size), rank, 0)), timeout);
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/health/heartbeat.h"

#include <random>

#include "fusedbun/dist/health/heartbeat_loop.h"

namespace fusedbun::health {
namespace {

std::map<int, Connection> connected(const RankCard& me, const Invitation& invitation,
                                    std::chrono::milliseconds timeout) {
  Connection connection(connect_to(invitation.host, invitation.port, timeout));
  connection.send(Hello{.token = invitation.token, .card = me});
  std::map<int, Connection> peers;
  peers.emplace(0, std::move(connection));
  return peers;
}

}  // namespace

Token random_token() {
  std::random_device source;  // the kernel's, not a seeded one
  Token token;
  for (uint8_t& byte : token) byte = static_cast<uint8_t>(source());
  return token;
}

Heartbeat::Heartbeat(HeartbeatOptions options, ListeningSocket listener, const Token& token) {
  const RankCard me = options.me;
  loop_ = std::make_unique<Loop>(std::move(options), std::move(listener.descriptor), token,
                                 std::map<int, Connection>{}, std::vector{me});
}

Heartbeat::Heartbeat(HeartbeatOptions options, const Invitation& invitation,
                     std::chrono::milliseconds timeout) {
  const RankCard me = options.me;
  auto peers = connected(me, invitation, timeout);
  loop_ = std::make_unique<Loop>(std::move(options), Descriptor(), invitation.token,
                                 std::move(peers), std::vector{invitation.rank_0, me});
}

Heartbeat::~Heartbeat() = default;

void Heartbeat::leave() noexcept {
  loop_->leave();
}

void Heartbeat::fail(int code, const std::string& reason) noexcept {
  loop_->fail(code, reason);
}

std::optional<plan::LostRank> Heartbeat::lost() const {
  return loop_->wait_lost(std::chrono::milliseconds(0));
}

std::optional<plan::LostRank> Heartbeat::wait_lost(std::chrono::milliseconds timeout) const {
  return loop_->wait_lost(timeout);
}

std::vector<plan::RankStatus> Heartbeat::ranks() const {
  return loop_->ranks();
}

}  // namespace fusedbun::health

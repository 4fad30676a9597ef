#include "fusedbun/dist/health/heartbeat.h"

#include "fusedbun/dist/health/heartbeat_loop.h"

namespace fusedbun::health {

Heartbeat::Heartbeat(HeartbeatOptions options, ListeningSocket listener, const Token& token) {
  const RankInfo me = options.me;
  loop_ = std::make_unique<Loop>(std::move(options), std::move(listener.descriptor), token,
                                 std::map<int, Connection>{}, std::vector{me});
}

Heartbeat::Heartbeat(HeartbeatOptions options, const Rendezvous& rendezvous,
                     std::chrono::milliseconds budget) {
  const RankInfo me = options.me;
  std::map<int, Connection> peers;
  peers.emplace(0, join(rendezvous, me, budget));
  loop_ = std::make_unique<Loop>(std::move(options), Descriptor(), rendezvous.token,
                                 std::move(peers), std::vector{rendezvous.rank_0, me});
}

Heartbeat::~Heartbeat() = default;

void Heartbeat::watch() {
  loop_->watch();
}

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

std::vector<Heartbeat::DumpAnswer> Heartbeat::dump(const std::string& folder, int64_t timeout_ms) {
  return loop_->dump(folder, timeout_ms);
}

void Heartbeat::exit_all(int code, const std::string& reason) {
  loop_->exit_all(code, reason);
}

}  // namespace fusedbun::health

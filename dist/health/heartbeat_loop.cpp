#include "fusedbun/dist/health/heartbeat_loop.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

/// Whoever connects proves within this time that he knows the token, or is closed.
constexpr int64_t kIntroductionUs = 5'000'000;
/// So many connections, beside one per rank, may be about to prove it; the oldest makes room for the next, so nobody
/// keeps a rank out by saying nothing.
constexpr size_t kUnauthenticatedMax = 128;
/// So that a flood of connections does not hold up a beat.
constexpr int kAcceptsPerWakeup = 16;
/// After the last descriptor was taken: the listener stays readable, so it is not looked at for as long.
constexpr int64_t kAcceptPauseUs = 100'000;
/// Above so many connections they are looked at once per kLookPauseUs, not for each beat that comes: a look costs time for every
/// connection, and beats come one by one. 1,024 ranks took half a core of rank 0's host without the pause.
constexpr size_t kFewPeers = 64;
constexpr int64_t kLookPauseUs = 50'000;
/// What is left unsaid by then stays unsaid.
constexpr int64_t kFarewellUs = 200'000;

int64_t now_in_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int milliseconds_until(int64_t until_us) {
  return static_cast<int>(std::clamp<int64_t>((until_us - now_in_us() + 999) / 1000, 0, 60'000));
}

}  // namespace

Heartbeat::Loop::Loop(HeartbeatOptions options, Descriptor listener, const Token& token,
                      std::map<int, Connection> peers, const std::vector<RankCard>& cards)
    : options_(std::move(options)),
      token_(token),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      listener_(std::move(listener)),
      peers_(std::move(peers)),
      watch_(options_.world_size, options_.limits, now_in_us()),
      cards_(static_cast<size_t>(options_.world_size)),
      beats_(static_cast<size_t>(options_.world_size)) {
  FUSEDBUN_REQUIRE(wake_.is_open(), IoError, "no eventfd for the heartbeat");
  for (int rank = 0; rank < options_.world_size; ++rank) cards_[rank].rank = rank;
  for (const RankCard& card : cards) cards_[card.rank] = card;
  thread_ = std::thread([this] { run(); });
}

Heartbeat::Loop::~Loop() {
  leave();
}

void Heartbeat::Loop::watch() {
  const std::lock_guard lock(mutex_);
  watching_ = true;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    const bool is_heard = options_.me.rank == 0 ? rank != 0 : rank == 0;
    if (is_heard) watch_.expect(rank, now_in_us());
  }
  for (const int rank : disconnected_) watch_.gone(rank);
}

void Heartbeat::Loop::leave() noexcept {
  const std::lock_guard only_one(leave_mutex_);
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  ::eventfd_write(wake_.value(), 1);
  if (thread_.joinable()) thread_.join();
}

void Heartbeat::Loop::fail(int code, const std::string& reason) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (lost_ || leaving_) return;
    failed_ = true;
    record_loss({.rank = options_.me.rank,
                 .last = options_.beat().position,
                 .cause = plan::LostRank::Cause::failed,
                 .code = code,
                 .reason = reason});
  }
  ::eventfd_write(wake_.value(), 1);
}

std::optional<plan::LostRank> Heartbeat::Loop::wait_lost(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return lost_.has_value(); });
  return lost_;
}

std::vector<plan::RankStatus> Heartbeat::Loop::ranks() {
  const std::lock_guard lock(mutex_);
  watch_.look(now_in_us());
  std::vector<plan::RankStatus> statuses;
  for (int rank = 0; rank < options_.world_size; ++rank) statuses.push_back(status_of(rank));
  return statuses;
}

plan::RankStatus Heartbeat::Loop::status_of(int rank) const {
  const bool is_me = rank == options_.me.rank;
  const Beat beat = is_me ? options_.beat() : beats_[rank];
  const RankCard& card = cards_[rank];
  plan::RankStatus status{.rank = rank,
                          .local_rank = card.local_rank,
                          .host = card.host,
                          .pid = card.pid,
                          .device = card.device,
                          .shard_bytes = beat.shard_bytes,
                          .job_step = beat.position.job_step,
                          .phase = beat.position.phase,
                          .bucket = beat.position.bucket,
                          .state_hash = beat.state_digest,
                          .liveness = watch_.liveness(rank),
                          .usage = beat.usage};
  if (is_me) {
    status.heartbeat_age_ms = 0;
  } else if (const auto silence = watch_.silence_us(rank)) {
    status.heartbeat_age_ms = *silence / 1000;
  }
  if (lost_ && lost_->rank == rank) status.liveness = plan::Liveness::lost;
  return status;
}

void Heartbeat::Loop::run() {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the program's own threads
  for (int64_t next_beat_us = 0;;) {
    const int64_t now_us = now_in_us();
    if (now_us >= next_beat_us) {
      send_beat(now_us);
      next_beat_us = now_us + options_.limits.heartbeat_us;
    }
    bool leaving = false;
    {
      const std::lock_guard lock(mutex_);
      watch_.look(now_us);
      if (const auto lost = watch_.lost()) record_loss(*lost);
      const bool hears_all = options_.me.rank == 0 && options_.world_size > 1;
      if (const auto hung = watch_.hung(); hung && hears_all) record_loss(*hung);
      leaving = leaving_;
    }
    // A loss is told even by one who leaves: the others may know of it from nobody else.
    const bool told = act_on_loss(now_us);
    if (leaving) return say_farewell();
    const int64_t overdue_us = told ? told_at_us_ + options_.leave_us : INT64_MAX;
    if (now_us >= overdue_us && !std::exchange(overdue_told_, true)) options_.on_overdue();
    wait(std::min(next_beat_us, overdue_told_ ? INT64_MAX : overdue_us));
  }
}

void Heartbeat::Loop::wait(int64_t until_us) {
  pause_between_looks(until_us);
  const bool accepts = now_in_us() >= accept_again_us_;
  if (listener_.is_open() && !accepts) until_us = std::min(until_us, accept_again_us_);
  // A closed connection has a negative descriptor, which poll leaves out.
  waits_ = {{wake_.value(), POLLIN, 0}, {accepts ? listener_.value() : -1, POLLIN, 0}};
  for (const auto& [rank, peer] : peers_) {
    const short events = peer.has_unsent() ? POLLIN | POLLOUT : POLLIN;
    waits_.push_back({peer.descriptor(), events, 0});
  }
  for (const UnauthenticatedPeer& peer : unauthenticated_) {
    waits_.push_back({peer.connection.descriptor(), POLLIN, 0});
  }
  ::poll(waits_.data(), waits_.size(), milliseconds_until(until_us));

  const int64_t now_us = now_in_us();
  auto ready = waits_.begin() + 2;
  std::vector<Received> received;
  for (auto& [rank, peer] : peers_) {
    const short events = (ready++)->revents;
    if ((events & POLLOUT) != 0) peer.flush();
    if ((events & ~POLLOUT) == 0) continue;
    for (Frame& frame : peer.receive()) received.push_back({rank, std::move(frame)});
  }
  take_all(received, now_us);
  std::erase_if(unauthenticated_, [&](UnauthenticatedPeer& peer) {
    const bool is_ready = (ready++)->revents != 0;
    return (is_ready && authenticate(peer)) || now_us - peer.since_us > kIntroductionUs;
  });
  if (waits_[1].revents != 0) accept_connections(now_us);
  stop_listening_if_complete();
  eventfd_t ignored = 0;
  if (waits_[0].revents != 0) ::eventfd_read(wake_.value(), &ignored);
}

void Heartbeat::Loop::pause_between_looks(int64_t until_us) {
  const int64_t next_look_us = std::min(until_us, looked_at_us_ + kLookPauseUs);
  // While ranks still join, each waits for an answer.
  if (!listener_.is_open() && peers_.size() > kFewPeers && now_in_us() < next_look_us) {
    pollfd own = {wake_.value(), POLLIN, 0};
    ::poll(&own, 1, milliseconds_until(next_look_us));
  }
  looked_at_us_ = now_in_us();
}

void Heartbeat::Loop::send_beat(int64_t now_us) {
  const Beat beat = options_.beat();
  {
    const std::lock_guard lock(mutex_);
    beats_[options_.me.rank] = beat;
    watch_.heard(options_.me.rank, beat.position, now_us);
  }
  for (auto& [rank, peer] : peers_) peer.send(beat);
}

// ---- connections ---------------------------------------------------------------------------------

void Heartbeat::Loop::accept_connections(int64_t now_us) {
  const size_t room = kUnauthenticatedMax + static_cast<size_t>(options_.world_size);
  for (int accepts = 0; accepts < kAcceptsPerWakeup; ++accepts) {
    Accepted accepted = accept_from(listener_);
    if (accepted.is_out_of_descriptors) accept_again_us_ = now_us + kAcceptPauseUs;
    if (!accepted.descriptor.is_open()) return;
    if (unauthenticated_.size() >= room) unauthenticated_.erase(unauthenticated_.begin());
    unauthenticated_.push_back(
        {Connection(std::move(accepted.descriptor)), {random_nonce()}, now_us});
    unauthenticated_.back().connection.send(unauthenticated_.back().challenge);
  }
}

bool Heartbeat::Loop::authenticate(UnauthenticatedPeer& peer) {
  const std::vector<Frame> frames = peer.connection.receive(kHelloBytes);
  if (frames.empty()) return !peer.connection.is_open();
  const auto* hello = std::get_if<Hello>(&frames.front());
  const bool knows_token =
      hello != nullptr &&
      is_same(hello->proof, proof_of(token_, Side::joining, peer.challenge, *hello));
  if (!knows_token) return true;
  const int rank = hello->card.rank;
  if (rank <= 0 || rank >= options_.world_size || peers_.contains(rank)) return true;
  peer.connection.send(Welcome{proof_of(token_, Side::listening, peer.challenge, *hello)});
  {
    const std::lock_guard lock(mutex_);
    cards_[rank] = hello->card;
    disconnected_.erase(rank);
  }
  peers_.emplace(rank, std::move(peer.connection));
  return true;
}

void Heartbeat::Loop::stop_listening_if_complete() {
  if (!listener_.is_open() || peers_.size() + 1 < static_cast<size_t>(options_.world_size)) return;
  listener_.close();
  unauthenticated_.clear();
}

// ---- what the ranks say --------------------------------------------------------------------------

void Heartbeat::Loop::take_all(const std::vector<Received>& received, int64_t now_us) {
  const std::lock_guard lock(mutex_);
  for (const Received& each : received) take(each.rank, each.frame, now_us);
  std::erase_if(peers_, [&](const auto& peer) {
    if (peer.second.is_open()) return false;
    if (watching_) {
      watch_.gone(peer.first);
    } else {
      disconnected_.insert(peer.first);
    }
    return true;
  });
}

void Heartbeat::Loop::take(int rank, const Frame& frame, int64_t now_us) {
  if (const auto* beat = std::get_if<Beat>(&frame)) {
    beats_[rank] = *beat;
    watch_.heard(rank, beat->position, now_us);
  } else if (const auto* lost = std::get_if<plan::LostRank>(&frame)) {
    const bool is_a_rank = lost->rank >= 0 && lost->rank < options_.world_size;
    if (is_a_rank || lost->cause == plan::LostRank::Cause::hung) record_loss(*lost);
  } else if (std::holds_alternative<Bye>(frame)) {
    watch_.left(rank);
  }
}

void Heartbeat::Loop::record_loss(plan::LostRank lost) {
  if (lost_) return;
  if (lost.cause == plan::LostRank::Cause::hung) lost.rank = plan::LostRank::kNone;
  if (lost.host.empty() && lost.rank != plan::LostRank::kNone) {
    lost.host = cards_[lost.rank].host;
    lost.pid = cards_[lost.rank].pid;
  }
  lost_ = std::move(lost);
  changed_.notify_all();
}

// ---- the end -------------------------------------------------------------------------------------

bool Heartbeat::Loop::act_on_loss(int64_t now_us) {
  if (told_at_us_ != 0) return true;
  std::optional<plan::LostRank> lost;
  bool known = false;
  {
    const std::lock_guard lock(mutex_);
    lost = lost_;
    known = failed_ || leaving_;
  }
  if (!lost) return false;
  told_at_us_ = now_us;
  for (auto& [rank, peer] : peers_) peer.send(*lost);
  if (!known) options_.on_lost(*lost);
  return true;
}

void Heartbeat::Loop::say_farewell() {
  if (told_at_us_ == 0) {
    for (auto& [rank, peer] : peers_) peer.send(Bye{});
  }
  for (const int64_t end_us = now_in_us() + kFarewellUs; now_in_us() < end_us;) {
    waits_.clear();
    for (auto& [rank, peer] : peers_) {
      peer.flush();
      if (peer.has_unsent()) waits_.push_back({peer.descriptor(), POLLOUT, 0});
    }
    if (waits_.empty()) break;
    ::poll(waits_.data(), waits_.size(), milliseconds_until(end_us));
  }
  for (auto& [rank, peer] : peers_) peer.drain();
}

}  // namespace fusedbun::health

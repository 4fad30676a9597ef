#include "fusedbun/dist/health/heartbeat_loop.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

/// A stranger says who it is within this time, or is closed.
constexpr int64_t kIntroductionUs = 5'000'000;
/// What is left unsaid by then stays unsaid.
constexpr int64_t kFarewellUs = 200'000;

int64_t now_in_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Heartbeat::Loop::Loop(HeartbeatOptions options, Descriptor listener, const Token& token,
                      std::map<int, Connection> peers, const std::vector<RankCard>& cards)
    : options_(std::move(options)),
      listener_(std::move(listener)),
      token_(token),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      peers_(std::move(peers)),
      watch_(options_.world_size, options_.limits, now_in_us()),
      cards_(static_cast<size_t>(options_.world_size)),
      beats_(static_cast<size_t>(options_.world_size)) {
  FUSEDBUN_REQUIRE(wake_.is_open(), IoError, "no eventfd for the heartbeat");
  for (int rank = 0; rank < options_.world_size; ++rank) cards_[rank].rank = rank;
  for (const RankCard& card : cards) cards_[card.rank] = card;
  for (int rank = 0; rank < options_.world_size; ++rank) {
    const bool watched = rank != options_.me.rank && (listener_.is_open() || peers_.contains(rank));
    if (watched) watch_.expect(rank, now_in_us());
  }
  thread_ = std::thread([this] { run(); });
}

Heartbeat::Loop::~Loop() {
  leave();
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
    adopt({.rank = options_.me.rank,
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
                          .liveness = watch_.liveness(rank)};
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
    bool leaving = false;
    {
      const std::lock_guard lock(mutex_);
      if (now_us >= next_beat_us) {
        send_beats(now_us);
        next_beat_us = now_us + options_.limits.heartbeat_us;
      }
      accept_strangers(now_us);
      receive(now_us);
      watch_.look(now_us);
      if (const auto lost = watch_.lost()) adopt(*lost);
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
  std::vector<pollfd> waits = {{wake_.value(), POLLIN, 0}};
  if (has_room_for_strangers()) waits.push_back({listener_.value(), POLLIN, 0});
  const auto add = [&](const Connection& connection) {
    const short events = connection.has_unsent() ? POLLIN | POLLOUT : POLLIN;
    if (connection.is_open()) waits.push_back({connection.descriptor(), events, 0});
  };
  for (const auto& [rank, peer] : peers_) add(peer);
  for (const Stranger& stranger : strangers_) add(stranger.connection);
  const int64_t wait_ms = std::clamp<int64_t>((until_us - now_in_us() + 999) / 1000, 0, 60'000);
  ::poll(waits.data(), waits.size(), static_cast<int>(wait_ms));
  eventfd_t ignored = 0;
  ::eventfd_read(wake_.value(), &ignored);
  for (auto& [rank, peer] : peers_) peer.flush();
}

void Heartbeat::Loop::send_beats(int64_t now_us) {
  const Beat beat = options_.beat();
  beats_[options_.me.rank] = beat;
  watch_.heard(options_.me.rank, beat.position, now_us);
  for (auto& [rank, peer] : peers_) peer.send(beat);
}

bool Heartbeat::Loop::has_room_for_strangers() const {
  return listener_.is_open() && strangers_.size() < 16 + static_cast<size_t>(options_.world_size);
}

void Heartbeat::Loop::accept_strangers(int64_t now_us) {
  while (has_room_for_strangers()) {
    Descriptor accepted = accept_from(listener_);
    if (!accepted.is_open()) break;
    strangers_.push_back({Connection(std::move(accepted)), now_us});
  }
  meet_strangers(now_us);
}

void Heartbeat::Loop::meet_strangers(int64_t now_us) {
  std::erase_if(strangers_, [&](Stranger& stranger) {
    const std::vector<Frame> frames = stranger.connection.receive();
    if (frames.empty()) {
      return !stranger.connection.is_open() || now_us - stranger.since_us > kIntroductionUs;
    }
    const auto* hello = std::get_if<Hello>(&frames.front());
    if (hello == nullptr || hello->token != token_) return true;
    const int rank = hello->card.rank;
    if (rank <= 0 || rank >= options_.world_size || peers_.contains(rank)) return true;
    cards_[rank] = hello->card;
    peers_.emplace(rank, std::move(stranger.connection));
    for (size_t i = 1; i < frames.size(); ++i) take(rank, frames[i], now_us);
    return true;
  });
}

void Heartbeat::Loop::receive(int64_t now_us) {
  for (auto& [rank, peer] : peers_) {
    if (!peer.is_open()) continue;
    for (const Frame& frame : peer.receive()) take(rank, frame, now_us);
    if (!peer.is_open()) watch_.gone(rank);
  }
}

void Heartbeat::Loop::take(int rank, const Frame& frame, int64_t now_us) {
  if (const auto* beat = std::get_if<Beat>(&frame)) {
    beats_[rank] = *beat;
    watch_.heard(rank, beat->position, now_us);
  } else if (const auto* lost = std::get_if<plan::LostRank>(&frame)) {
    if (lost->rank >= 0 && lost->rank < options_.world_size) adopt(*lost);
  } else if (std::holds_alternative<Bye>(frame)) {
    watch_.left(rank);
  }
}

void Heartbeat::Loop::adopt(plan::LostRank lost) {
  if (lost_) return;
  if (lost.host.empty()) {
    lost.host = cards_[lost.rank].host;
    lost.pid = cards_[lost.rank].pid;
  }
  lost_ = std::move(lost);
  changed_.notify_all();
}

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
  const int64_t end_us = now_in_us() + kFarewellUs;
  const auto unsent = [&](const auto& peer) {
    return peer.second.is_open() && peer.second.has_unsent();
  };
  while (now_in_us() < end_us && std::ranges::any_of(peers_, unsent)) wait(end_us);
  // To close a socket with unread bytes would break the connection under what was just said.
  for (auto& [rank, peer] : peers_) peer.receive();
}

}  // namespace fusedbun::health

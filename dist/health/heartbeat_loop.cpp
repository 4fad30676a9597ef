#include "fusedbun/dist/health/heartbeat_loop.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun::health {
namespace {

/// A process that connects proves within this time that it knows the token, or is closed.
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
/// Rank 0 waits so long for the others to end before it ends itself.
constexpr int64_t kExitUs = 2'000'000;
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
                      std::map<int, Connection> peers, const std::vector<RankInfo>& infos)
    : options_(std::move(options)),
      token_(token),
      listener_(std::move(listener)),
      peers_(std::move(peers)),
      watch_(options_.world_size, options_.limits, now_in_us()),
      infos_(static_cast<size_t>(options_.world_size)),
      beats_(static_cast<size_t>(options_.world_size)) {
  outbox_->wake = Descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  FUSEDBUN_REQUIRE(outbox_->wake.is_open(), IoError, "no eventfd for the heartbeat");
  for (int rank = 0; rank < options_.world_size; ++rank) infos_[rank].rank = rank;
  for (const RankInfo& info : infos) infos_[info.rank] = info;
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
  for (const int rank : disconnected_) watch_.on_disconnect(rank);
}

void Heartbeat::Loop::leave() noexcept {
  const std::lock_guard only_one(leave_mutex_);
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  ::eventfd_write(outbox_->wake.value(), 1);
  if (thread_.joinable()) thread_.join();
  if (describing_.joinable()) describing_.join();
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
  ::eventfd_write(outbox_->wake.value(), 1);
}

std::optional<plan::LostRank> Heartbeat::Loop::wait_lost(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return lost_.has_value(); });
  return lost_;
}

std::vector<plan::RankStatus> Heartbeat::Loop::ranks() {
  const std::lock_guard lock(mutex_);
  watch_.tick(now_in_us());
  std::vector<plan::RankStatus> statuses;
  for (int rank = 0; rank < options_.world_size; ++rank) statuses.push_back(status_of(rank));
  return statuses;
}

plan::RankStatus Heartbeat::Loop::status_of(int rank) const {
  const bool is_me = rank == options_.me.rank;
  const Beat beat = is_me ? options_.beat() : beats_[rank];
  const RankInfo& info = infos_[rank];
  plan::RankStatus status{.rank = rank,
                          .local_rank = info.local_rank,
                          .host = info.host,
                          .pid = info.pid,
                          .device = info.device,
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
      watch_.tick(now_us);
      if (const auto lost = watch_.lost()) record_loss(*lost);
      const bool hears_all = options_.me.rank == 0 && options_.world_size > 1;
      if (const auto hung = watch_.hung(); hung && hears_all) record_loss(*hung);
      leaving = leaving_;
    }
    // A loss is told even by one who leaves: the others may know of it from nobody else.
    const bool told = act_on_loss(now_us);
    give_orders();
    send_answers();
    if (leaving) return send_goodbyes();
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
  waits_ = {{outbox_->wake.value(), POLLIN, 0}, {accepts ? listener_.value() : -1, POLLIN, 0}};
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
  for (const Received& each : received) {
    const auto* order = std::get_if<Order>(&each.frame);
    if (order != nullptr && options_.me.rank != 0) obey(*order);
  }
  std::erase_if(unauthenticated_, [&](UnauthenticatedPeer& peer) {
    const bool is_ready = (ready++)->revents != 0;
    return (is_ready && authenticate(peer)) || now_us - peer.since_us > kIntroductionUs;
  });
  if (waits_[1].revents != 0) accept_connections(now_us);
  stop_listening_if_complete();
  eventfd_t ignored = 0;
  if (waits_[0].revents != 0) ::eventfd_read(outbox_->wake.value(), &ignored);
}

void Heartbeat::Loop::pause_between_looks(int64_t until_us) {
  const int64_t next_look_us = std::min(until_us, looked_at_us_ + kLookPauseUs);
  // While ranks still join, each waits for an answer.
  if (!listener_.is_open() && peers_.size() > kFewPeers && now_in_us() < next_look_us) {
    pollfd own = {outbox_->wake.value(), POLLIN, 0};
    ::poll(&own, 1, milliseconds_until(next_look_us));
  }
  looked_at_us_ = now_in_us();
}

void Heartbeat::Loop::send_beat(int64_t now_us) {
  const Beat beat = options_.beat();
  {
    const std::lock_guard lock(mutex_);
    beats_[options_.me.rank] = beat;
    watch_.on_heartbeat(options_.me.rank, beat.position, now_us);
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
  const int rank = hello->info.rank;
  if (rank <= 0 || rank >= options_.world_size || peers_.contains(rank)) return true;
  peer.connection.send(Welcome{proof_of(token_, Side::listening, peer.challenge, *hello)});
  {
    const std::lock_guard lock(mutex_);
    infos_[rank] = hello->info;
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
      watch_.on_disconnect(peer.first);
    } else {
      disconnected_.insert(peer.first);
    }
    return true;
  });
}

void Heartbeat::Loop::take(int rank, const Frame& frame, int64_t now_us) {
  if (const auto* beat = std::get_if<Beat>(&frame)) {
    beats_[rank] = *beat;
    watch_.on_heartbeat(rank, beat->position, now_us);
  } else if (const auto* lost = std::get_if<plan::LostRank>(&frame)) {
    const bool is_a_rank = lost->rank >= 0 && lost->rank < options_.world_size;
    if (is_a_rank || lost->cause == plan::LostRank::Cause::hung) record_loss(*lost);
  } else if (std::holds_alternative<Bye>(frame)) {
    watch_.on_goodbye(rank);
  } else if (const auto* answer = std::get_if<OrderAnswer>(&frame)) {
    if (answer->number != dump_number_ || dump_answers_.empty()) return;
    dump_answers_[static_cast<size_t>(rank)] = {.has_answered = true, .problem = answer->problem};
    changed_.notify_all();
  }
}

void Heartbeat::Loop::record_loss(plan::LostRank lost) {
  if (lost_) return;
  if (lost.cause == plan::LostRank::Cause::hung) lost.rank = plan::LostRank::kNone;
  if (lost.host.empty() && lost.rank != plan::LostRank::kNone) {
    lost.host = infos_[lost.rank].host;
    lost.pid = infos_[lost.rank].pid;
  }
  lost_ = std::move(lost);
  changed_.notify_all();
}

// ---- orders --------------------------------------------------------------------------------------

std::vector<plan::RankOrders::DumpAnswer> Heartbeat::Loop::dump(const std::string& folder,
                                                                int64_t timeout_ms) {
  const std::lock_guard one_at_a_time(dump_mutex_);
  std::unique_lock lock(mutex_);
  dump_answers_.assign(static_cast<size_t>(options_.world_size), {});
  if (folder.size() > Order::kTextBytesMax) {
    for (DumpAnswer& answer : dump_answers_) answer = {true, "too long a name: " + folder};
    return dump_answers_;
  }
  orders_.push_back({.kind = Order::Kind::dump, .number = ++dump_number_, .text = folder});
  ::eventfd_write(outbox_->wake.value(), 1);
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                    [&] { return std::ranges::all_of(dump_answers_, &DumpAnswer::has_answered); });
  return dump_answers_;
}

void Heartbeat::Loop::exit_all(int code, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  orders_.push_back({.kind = Order::Kind::exit, .code = code, .text = reason});
  ::eventfd_write(outbox_->wake.value(), 1);
}

void Heartbeat::Loop::give_orders() {
  std::vector<Order> orders;
  {
    const std::lock_guard lock(mutex_);
    orders.swap(orders_);
  }
  for (const Order& order : orders) {
    for (auto& [rank, peer] : peers_) peer.send(order);
    if (order.kind == Order::Kind::exit) wait_for_ends();
    obey(order);
  }
}

void Heartbeat::Loop::obey(const Order& order) {
  if (order.kind == Order::Kind::dump) return start_dump(order);
  options_.exit(order.code, order.text);
  FUSEDBUN_ASSERT(false, "HeartbeatOptions::exit ends the process");
}

void Heartbeat::Loop::wait_for_ends() {
  const auto is_open = [](const auto& peer) { return peer.second.is_open(); };
  for (const int64_t end_us = now_in_us() + kExitUs;
       now_in_us() < end_us && std::ranges::any_of(peers_, is_open);) {
    waits_.clear();
    for (auto& [rank, peer] : peers_) {
      peer.flush();
      waits_.push_back({peer.descriptor(), POLLIN, 0});
    }
    ::poll(waits_.data(), waits_.size(), milliseconds_until(end_us));
    for (auto& [rank, peer] : peers_) peer.receive();  // closes those that have ended
  }
  for (const auto& [rank, peer] : peers_) {
    if (peer.is_open()) options_.end_forcibly(infos_[static_cast<size_t>(rank)]);
  }
}

void Heartbeat::Loop::start_dump(const Order& order) {
  if (is_describing_.exchange(true)) {
    const std::lock_guard lock(outbox_->mutex);
    outbox_->answers.push_back({order.number, "the dump before is still under way"});
    return;
  }
  if (describing_.joinable()) describing_.join();  // it has ended
  const auto write = [write_dump = options_.write_dump, outbox = outbox_](const Order& asked,
                                                                          const std::string& text) {
    const std::string problem = write_dump(asked.text, text);
    const std::lock_guard lock(outbox->mutex);
    outbox->answers.push_back({asked.number, problem});
    ::eventfd_write(outbox->wake.value(), 1);
  };
  describing_ = std::thread([this, order, write] {
    const std::string text = options_.describe();
    std::thread(write, order, text).detach();
    is_describing_.store(false);
  });
}

void Heartbeat::Loop::send_answers() {
  std::vector<OrderAnswer> answers;
  {
    const std::lock_guard lock(outbox_->mutex);
    answers.swap(outbox_->answers);
  }
  for (const OrderAnswer& answer : answers) {
    if (options_.me.rank == 0) {
      const std::lock_guard lock(mutex_);
      take(0, answer, now_in_us());
    } else {
      for (auto& [rank, peer] : peers_) peer.send(answer);
    }
  }
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

void Heartbeat::Loop::send_goodbyes() {
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

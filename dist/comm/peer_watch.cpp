#include "fusedbun/dist/comm/peer_watch.h"

#include <algorithm>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

constexpr std::chrono::milliseconds kPause{50};
constexpr std::chrono::microseconds kPausePerPeer{
    200};  // so that a look at 1,000 peers stays cheap
/// Long beside a round trip, short beside a person's patience.
constexpr std::chrono::milliseconds kAskAfter{200};

std::string rank_text(int rank) {
  return "rank " + std::to_string(rank);
}

}  // namespace

PeerWatch::PeerWatch(Transport& transport, Family& family, const WatchedOperations& operations)
    : transport_(transport),
      family_(family),
      operations_(operations),
      pause_(std::max(kPause, std::chrono::duration_cast<std::chrono::milliseconds>(
                                  kPausePerPeer * transport.size()))),
      peers_(static_cast<size_t>(transport.size())) {
  {
    const std::lock_guard lock(mutex_);
    look();  // the receives of the first frames are posted here, before any operation
  }
  thread_ = std::thread([this] { run(); });
}

void PeerWatch::stop() {
  {
    const std::lock_guard lock(stop_mutex_);
    stopping_ = true;
    stopped_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void PeerWatch::run() {
  std::unique_lock stop_lock(stop_mutex_);
  while (!stopped_.wait_for(stop_lock, pause_, [&] { return stopping_; })) {
    stop_lock.unlock();
    if (family_.failure()) return;
    std::optional<Failure> failure;
    {
      const std::lock_guard lock(mutex_);
      failure = look();
      if (!failure) failure = lost_peer();
      if (!failure) ask();
    }
    if (failure) return family_.fail(*failure);
    stop_lock.lock();
  }
}

std::optional<Failure> PeerWatch::look() {
  // A frame is read once, by this thread or by one whose operation has just failed: both must come to its failure.
  if (told_) return told_;
  for (int peer = 0; peer < transport_.size(); ++peer) {
    Peer& state = peers_[static_cast<size_t>(peer)];
    if (peer == transport_.rank() || state.is_gone) continue;
    try {
      while (const auto frame = transport_.receive_control(peer)) {
        told_ = handle(peer, *frame);
        if (told_) return told_;
      }
    } catch (const std::exception& error) {
      state.is_gone = true;
      state.gone = error.what();
    }
  }
  return std::nullopt;
}

std::optional<Failure> PeerWatch::handle(int peer, const ControlFrame& frame) {
  Peer& state = peers_[static_cast<size_t>(peer)];
  switch (frame.kind) {
    case ControlFrame::Kind::asks: {
      ControlFrame answer{.kind = ControlFrame::Kind::answers};
      answer.number = operations_.next_number();
      try {
        transport_.send_control(peer, Transport::Slot::answers, answer);
      } catch (const std::exception&) {
        // It has closed since it asked; why is in a frame behind this one.
      }
      // Set before the search: a call of this number that the search misses sees it.
      state.ask = frame;
      has_asks_ = true;
      const auto mine = operations_.find(frame.number);
      return mine ? compare(peer, frame, *mine) : std::nullopt;
    }
    case ControlFrame::Kind::answers:
      state.answered = true;
      state.next = frame.number;
      return std::nullopt;
    case ControlFrame::Kind::left:
      state.left = frame;
      return std::nullopt;
    case ControlFrame::Kind::failed: {
      const bool is_first = frame.number == 0;
      const auto code = static_cast<ExitCode>(frame.code);
      if (code == ExitCode::config) return Failure{code, frame.text, true};
      return Failure{ExitCode::peer_lost,
                     is_first ? rank_text(peer) + " gave up: " + frame.text : frame.text, true};
    }
    case ControlFrame::Kind::none:
      break;
  }
  return std::nullopt;
}

std::optional<Failure> PeerWatch::compare(int peer, const ControlFrame& ask,
                                          const CollectiveCall& mine) const {
  const bool is_same = mine.digest() == ask.digest &&
                       digest_of(mine.sends, peer) == ask.receives_digest &&
                       digest_of(mine.receives, peer) == ask.sends_digest;
  if (is_same) return std::nullopt;
  return Failure{ExitCode::config, mismatch_text(transport_.backend(), ask.number, {peer, ask.text},
                                                 {transport_.rank(), mine.describe_to(peer)})};
}

// A rank that is gone, unless it left after everything that this one still needs.
std::optional<Failure> PeerWatch::lost_peer() {
  const auto waiting = operations_.waiting();
  for (int peer = 0; peer < transport_.size(); ++peer) {
    const Peer& state = peers_[static_cast<size_t>(peer)];
    const bool is_waited_for = waiting && waiting->peer == peer;
    if (state.left && is_waited_for && waiting->number >= state.left->number &&
        waiting->stalled > kPause) {
      return left_failure(peer, waiting->number, *waiting->call);
    }
    const bool may_still_arrive = state.left && !(is_waited_for && waiting->stalled > kAskAfter);
    if (!state.is_gone || may_still_arrive) continue;
    std::string place = std::string(transport_.backend()) + ": " + rank_text(transport_.rank()) +
                        " of " + std::to_string(transport_.size());
    if (waiting) {
      place += " in " + waiting->call->describe() + " (operation " +
               std::to_string(waiting->number) + ")";
    }
    return Failure{ExitCode::peer_lost, place + ": lost " + rank_text(peer) + " (" + state.gone +
                                            "). The communicator is broken: end this process, and "
                                            "start the job again from its last checkpoint"};
  }
  return std::nullopt;
}

Failure PeerWatch::left_failure(int peer, uint64_t number, const CollectiveCall& call) const {
  const ControlFrame& left = *peers_[static_cast<size_t>(peer)].left;
  const std::string after = left.number == 0 ? " before its first operation"
                                             : " after " + std::string(left.text) + " (operation " +
                                                   std::to_string(left.number - 1) + ")";
  return {ExitCode::config, std::string(transport_.backend()) + ": " + rank_text(peer) + " left" +
                                after + " where " + rank_text(transport_.rank()) + " called " +
                                call.describe() + " (operation " + std::to_string(number) +
                                "): all ranks must call the same operations, and as many"};
}

void PeerWatch::ask() {
  const auto waiting = operations_.waiting();
  if (!waiting || waiting->stalled < kAskAfter || waiting->peer < 0) return;
  Peer& state = peers_[static_cast<size_t>(waiting->peer)];
  if (!state.answered || state.is_gone || state.asked == waiting->number) return;
  ControlFrame frame{.kind = ControlFrame::Kind::asks};
  frame.number = waiting->number;
  frame.digest = waiting->call->digest();
  frame.sends_digest = digest_of(waiting->call->sends, waiting->peer);
  frame.receives_digest = digest_of(waiting->call->receives, waiting->peer);
  frame.set_text(waiting->call->describe_to(waiting->peer));
  try {
    transport_.send_control(waiting->peer, Transport::Slot::asks, frame);
    state.asked = waiting->number;
    state.answered = false;
  } catch (const std::exception&) {
    // It has closed; look() reads its last words first and then finds it gone.
  }
}

void PeerWatch::called(uint64_t number, const CollectiveCall& call) {
  if (!has_asks_) return;
  std::optional<Failure> failure;
  {
    const std::lock_guard lock(mutex_);
    bool has_later_asks = false;
    for (int peer = 0; peer < transport_.size() && !failure; ++peer) {
      const auto& asked = peers_[static_cast<size_t>(peer)].ask;
      if (asked && asked->number == number) failure = compare(peer, *asked, call);
      has_later_asks = has_later_asks || (asked && asked->number > number);
    }
    if (!has_later_asks) has_asks_ = false;
  }
  if (failure) family_.fail(*failure);
}

std::optional<Failure> PeerWatch::explain(uint64_t number, const CollectiveCall& call,
                                          const std::function<bool(int peer)>& needs) {
  const std::lock_guard lock(mutex_);
  if (auto failure = look()) return failure;
  for (int peer = 0; peer < transport_.size(); ++peer) {
    const Peer& state = peers_[static_cast<size_t>(peer)];
    if (state.left && number >= state.left->number && needs(peer)) {
      return left_failure(peer, number, call);
    }
  }
  return std::nullopt;
}

std::string PeerWatch::describe(int peer, uint64_t number) const {
  const std::lock_guard lock(mutex_);
  const Peer& state = peers_[static_cast<size_t>(peer)];
  if (state.asked == number && state.answered && state.next <= number) {
    return "which runs but has not called it: it calls operation " + std::to_string(state.next) +
           " next";
  }
  return "which is stopped, late or unreachable";
}

void PeerWatch::say_left() {
  ControlFrame frame{.kind = ControlFrame::Kind::left};
  frame.number = operations_.next_number();
  const auto last = frame.number > 0 ? operations_.find(frame.number - 1) : nullptr;
  if (last) frame.set_text(last->describe());
  tell_all(frame);
}

void PeerWatch::say_failed(const Failure& failure) noexcept {
  ControlFrame frame{.kind = ControlFrame::Kind::failed};
  frame.code = static_cast<int32_t>(failure.code);
  frame.number = failure.told_by_peer ? 1 : 0;
  frame.set_text(failure.text);
  tell_all(frame);
}

void PeerWatch::tell_all(const ControlFrame& frame) noexcept {
  for (int peer = 0; peer < transport_.size(); ++peer) {
    if (peer == transport_.rank()) continue;
    try {
      transport_.send_control(peer, Transport::Slot::last_words, frame);
    } catch (const std::exception&) {
      // It is gone and needs no word.
    }
  }
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/comm/operation_queue.h"

#include <algorithm>
#include <exception>
#include <iomanip>
#include <sstream>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

/// How long a broken transport may take to let go of an operation's memory.
constexpr std::chrono::seconds kReleaseTime{5};
/// So many operations that ended can still be compared with a peer's.
constexpr size_t kEndedCalls = 64;
/// Longer messages travel in packets of this size, so that progress is seen, and counts fit an int.
constexpr int64_t kPacketBytes = 8 * 1024 * 1024;

}  // namespace

OperationQueue::OperationQueue(std::shared_ptr<Family> family, std::unique_ptr<Transport> transport)
    : family_(std::move(family)), transport_(std::move(transport)) {
  if (size() == 1) return;
  const WatchedOperations& operations = *this;
  watch_ = std::make_unique<PeerWatch>(*transport_, *family_, operations);
  family_->add(*this);
  thread_ = std::thread([this] { run(); });
}

OperationQueue::~OperationQueue() {
  if (size() == 1) return;
  bool unfinished = false;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    unfinished = !entries_.empty();
    posted_.notify_one();
  }
  if (unfinished) {
    family_->fail({ExitCode::peer_lost, "the communicator was destroyed during an operation"});
  } else if (std::uncaught_exceptions() > 0) {
    family_->fail({ExitCode::peer_lost, "it left with an exception"});
  }
  thread_.join();
  watch_->stop();
  if (!family_->failure()) watch_->say_left();
  family_->remove(*this);
}

void OperationQueue::break_with(const Failure& failure) noexcept {
  watch_->say_failed(failure);
  transport_->close();
}

std::shared_ptr<OperationQueue::Entry> OperationQueue::post(CollectiveCall call) {
  auto entry = std::make_shared<Entry>();
  entry->rounds = rounds_of(call, rank(), size());
  entry->digest = call.digest();
  entry->call = std::make_shared<const CollectiveCall>(std::move(call));
  entry->posted_at = Clock::now();
  if (size() == 1) {  // no peer to wait for
    entry->number = next_number_++;
    entry->failure = finish(*entry);
    entry->ended_at = Clock::now();
    entry->ended = true;
    return entry;
  }
  {
    const std::lock_guard lock(mutex_);
    // The highest number is the transport's own, and one number never stands for two operations.
    const size_t at_once = (size_t{1} << transport_->tags().number_bits) - 2;
    FUSEDBUN_REQUIRE(entries_.size() < at_once, ConfigError,
                     "more than " + std::to_string(at_once) +
                         " operations are under way: wait for some of them");
    entry->number = next_number_;
  }
  try {
    if (!family_->failure()) {
      start_round(*entry);
      start_early_rounds(*entry, 0);
    }
  } catch (const std::exception& error) {
    fail(*entry, error.what());
  }
  {
    const std::lock_guard lock(mutex_);
    ++next_number_;
    calls_.push_back(entry->call);
    entries_.push_back(entry);
    posted_.notify_one();
  }
  watch_->called(entry->number, *entry->call);
  return entry;
}

void OperationQueue::wait(const Entry& entry, std::chrono::milliseconds timeout) {
  const auto ended = [&] { return entry.ended; };
  const Clock::time_point begin = Clock::now();
  const auto deadline = [&] { return std::max(begin, progress_.moved_at()) + timeout; };
  std::unique_lock lock(mutex_);
  while (!entry.ended) {
    const Clock::time_point until = deadline();
    if (ended_.wait_until(lock, until, ended) || deadline() > until) continue;
    const int peer = progress_.peer();
    lock.unlock();
    Failure failure = failure_in(entry, "not done after " + std::to_string(timeout.count()) +
                                            " ms, waiting for rank " + std::to_string(peer) + ", " +
                                            (peer < 0 ? "" : watch_->describe(peer, entry.number)));
    failure.code = ExitCode::timeout;
    family_->fail(failure);
    lock.lock();
    ended_.wait_for(lock, kReleaseTime, ended);
    family_->failure()->raise();
  }
  if (entry.failure) entry.failure->raise();
}

void OperationQueue::drop(const Entry& entry) {
  const auto ended = [&] { return entry.ended; };
  std::unique_lock lock(mutex_);
  if (entry.ended) return;
  lock.unlock();
  family_->fail(failure_in(entry, "dropped while an error unwound the stack"));
  lock.lock();
  ended_.wait_for(lock, kReleaseTime, ended);
}

void OperationQueue::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    posted_.wait(lock, [&] { return stopping_ || !entries_.empty(); });
    if (entries_.empty()) return;
    const auto entry = entries_.front();
    lock.unlock();
    auto failure = finish(*entry);
    entry->transfers.clear();  // from here on nothing touches the operation's buffers
    entry->rounds.clear();
    lock.lock();
    entries_.pop_front();
    forget_ended_calls();
    entry->failure = std::move(failure);
    entry->ended_at = Clock::now();
    entry->ended = true;
    ended_.notify_all();
  }
}

void OperationQueue::forget_ended_calls() {
  while (calls_.size() > entries_.size() + kEndedCalls) {
    calls_.pop_front();
    ++first_call_;
  }
}

// Runs what is left of the operation.
std::optional<Failure> OperationQueue::finish(Entry& entry) {
  try {
    for (size_t round = 0; round < entry.rounds.size(); ++round) {
      if (auto failure = family_->failure()) return failure;
      if (entry.started == round) start_round(entry);
      if (entry.transfers.front()) entry.transfers.front()->wait(progress_);
      entry.transfers.pop_front();
      start_early_rounds(entry, round + 1);
      if (entry.rounds[round].then) entry.rounds[round].then();
    }
    progress_.moved();
    return std::nullopt;
  } catch (const std::exception& error) {
    fail(entry, error.what());
    return family_->failure();
  }
}

void OperationQueue::start_round(Entry& entry) {
  const Round& round = entry.rounds[entry.started];
  const bool is_local = round.sends.empty() && round.receives.empty();
  entry.transfers.push_back(is_local ? nullptr
                                     : transport_->start(packets_of(entry, round.sends),
                                                         packets_of(entry, round.receives)));
  for (const Message& message : round.sends) family_->add_sent_bytes(message.bytes);
  ++entry.started;
}

void OperationQueue::start_early_rounds(Entry& entry, size_t waited_for) {
  while (entry.started < entry.rounds.size() && entry.rounds[entry.started].starts_early &&
         entry.started < waited_for + kRoundsAhead) {
    start_round(entry);
  }
}

// The tag holds a digest of what both ranks must agree on: messages of calls that do not match never meet. An exchange
// is one round, and agreed on pair by pair.
std::vector<Packet> OperationQueue::packets_of(const Entry& entry,
                                               const std::vector<Message>& messages) const {
  const TagLayout layout = transport_->tags();
  const auto number = static_cast<int>(entry.number % ((1u << layout.number_bits) - 1));
  const auto tag_of = [&](uint64_t digest) {
    const auto kept = static_cast<int>(digest & ((1u << layout.digest_bits) - 1));
    return (number << layout.digest_bits) | kept;
  };
  std::vector<uint64_t> of_pair;
  if (entry.call->operation == Operation::exchange) of_pair = digests_by_peer(messages, size());
  std::vector<Packet> packets;
  packets.reserve(messages.size());
  for (const Message& message : messages) {
    const int tag =
        tag_of(of_pair.empty() ? entry.digest : entry.digest ^ of_pair[size_t(message.peer)]);
    for (int64_t begin = 0; begin < message.bytes; begin += kPacketBytes) {
      packets.push_back(
          {message.peer, message.data + begin, std::min(kPacketBytes, message.bytes - begin), tag});
    }
  }
  return packets;
}

std::optional<WatchedOperations::Waiting> OperationQueue::waiting() const {
  const std::lock_guard lock(mutex_);
  if (entries_.empty()) return std::nullopt;
  const Entry& entry = *entries_.front();
  const auto since = std::max(entry.posted_at, progress_.moved_at());
  return Waiting{entry.number, entry.call, progress_.peer(), Clock::now() - since};
}

std::vector<std::string> OperationQueue::pending_operations() const {
  const std::lock_guard lock(mutex_);
  const auto seconds_since = [now = Clock::now()](Clock::time_point time) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(1) << std::chrono::duration<double>(now - time).count()
         << " s";
    return text.str();
  };
  std::vector<std::string> operations;
  for (const auto& entry : entries_) {
    std::string text = std::string(transport_->backend()) + " operation " +
                       std::to_string(entry->number) + " of " + std::to_string(size()) +
                       " ranks, " + entry->call->describe() + ", called " +
                       seconds_since(entry->posted_at) + " ago";
    if (entry == entries_.front() && progress_.peer() >= 0)
      text += ", waits for its rank " + std::to_string(progress_.peer());
    operations.push_back(std::move(text));
  }
  return operations;
}

std::shared_ptr<const CollectiveCall> OperationQueue::find(uint64_t number) const {
  const std::lock_guard lock(mutex_);
  if (number < first_call_ || number - first_call_ >= calls_.size()) return nullptr;
  return calls_[number - first_call_];
}

uint64_t OperationQueue::next_number() const {
  const std::lock_guard lock(mutex_);
  return next_number_;
}

void OperationQueue::fail(const Entry& entry, const std::string& problem) {
  const auto needs = [&](int peer) {
    const auto is_with = [peer](const Message& message) { return message.peer == peer; };
    return std::ranges::any_of(entry.rounds, [&](const Round& round) {
      return std::ranges::any_of(round.sends, is_with) ||
             std::ranges::any_of(round.receives, is_with);
    });
  };
  const auto told = watch_ ? watch_->explain(entry.number, *entry.call, needs) : std::nullopt;
  family_->fail(told ? *told : failure_in(entry, problem));
}

Failure OperationQueue::failure_in(const Entry& entry, const std::string& problem) const {
  return {ExitCode::peer_lost, std::string(transport_->backend()) + ": rank " +
                                   std::to_string(rank()) + " of " + std::to_string(size()) +
                                   " in " + entry.call->describe() + " (operation " +
                                   std::to_string(entry.number) + "): " + problem +
                                   ". The communicator is broken: end this process, and start the "
                                   "job again from its last checkpoint"};
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/comm/message_queue.h"

#include <utility>

namespace fusedbun::comm {
namespace {

// A tag is a group's number and an operation's, the latter modulo how many may be under way at once.
constexpr int kOperationBits = 13;
constexpr size_t kUnderWayMax = (size_t{1} << kOperationBits) - 1;
constexpr int64_t kGroupCountMax = int64_t{Transport::kTagMax + 1} >> kOperationBits;

// How long a broken transport may take to let go of an operation's memory.
constexpr std::chrono::seconds kReleaseTime{5};

}  // namespace

std::unique_ptr<Transfer> Connections::start(const Round& round, int tag) {
  const std::lock_guard lock(mutex_);
  if (failure_) failure_->raise();
  return transport_->start(round.sends, round.receives, tag);
}

void Connections::fail(Failure failure) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = std::move(failure);
  }
  transport_->close();
}

std::optional<Failure> Connections::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

int64_t Connections::next_group() const {
  const std::lock_guard lock(mutex_);
  return next_group_;
}

void Connections::set_next_group(int64_t number) {
  FUSEDBUN_REQUIRE(number <= kGroupCountMax, ConfigError,
                   "more than " + std::to_string(kGroupCountMax - 1) +
                       " groups were made from one communicator");
  const std::lock_guard lock(mutex_);
  next_group_ = number;
}

MessageQueue::MessageQueue(std::shared_ptr<Connections> connections, std::vector<int> members,
                           int rank, int64_t group)
    : connections_(std::move(connections)),
      members_(std::move(members)),
      rank_(rank),
      group_(group) {
  if (size() > 1) thread_ = std::thread([this] { run(); });
}

MessageQueue::~MessageQueue() {
  bool unfinished = false;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    unfinished = !entries_.empty();
    posted_.notify_one();
  }
  if (unfinished)
    connections_->fail({ExitCode::peer_lost, "the communicator was destroyed during an operation"});
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<MessageQueue::Entry> MessageQueue::post(Call call) {
  auto entry = std::make_shared<Entry>();
  entry->rounds = rounds_of(call, rank_, size());
  for (Round& round : entry->rounds) {
    for (Message& message : round.sends) message.peer = members_[message.peer];
    for (Message& message : round.receives) message.peer = members_[message.peer];
  }
  entry->call = std::move(call);
  const std::lock_guard lock(mutex_);
  FUSEDBUN_REQUIRE(entries_.size() < kUnderWayMax, ConfigError,
                   "more than " + std::to_string(kUnderWayMax) +
                       " operations are under way: wait for some of them");
  entry->number = next_number_++;
  entry->tag = static_cast<int>((group_ << kOperationBits) |
                                static_cast<int64_t>(entry->number & kUnderWayMax));
  if (size() == 1) {  // nobody to wait for
    entry->failure = finish(*entry);
    entry->ended = true;
    return entry;
  }
  try {
    start_round(*entry);
  } catch (const std::exception& error) {
    connections_->fail(failure_in(*entry, error.what()));
  }
  entries_.push_back(entry);
  posted_.notify_one();
  return entry;
}

void MessageQueue::wait(const Entry& entry, std::chrono::milliseconds timeout) {
  const auto ended = [&] { return entry.ended; };
  std::unique_lock lock(mutex_);
  if (!ended_.wait_for(lock, timeout, ended)) {
    Failure failure = failure_in(
        entry, "not done after " + std::to_string(timeout.count()) + " ms, waiting for rank " +
                   std::to_string(waiting_for_.load()) + ", which is stopped, late or unreachable");
    failure.code = ExitCode::timeout;
    lock.unlock();
    connections_->fail(std::move(failure));
    lock.lock();
    ended_.wait_for(lock, kReleaseTime, ended);
    connections_->failure()->raise();
  }
  if (entry.failure) entry.failure->raise();
}

void MessageQueue::drop(const Entry& entry) {
  const auto ended = [&] { return entry.ended; };
  std::unique_lock lock(mutex_);
  if (entry.ended) return;
  const Failure failure = failure_in(entry, "dropped while an error unwound the stack");
  lock.unlock();
  connections_->fail(failure);
  lock.lock();
  ended_.wait_for(lock, kReleaseTime, ended);
}

void MessageQueue::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    posted_.wait(lock, [&] { return stopping_ || !entries_.empty(); });
    if (entries_.empty()) return;
    const auto entry = entries_.front();
    lock.unlock();
    auto failure = finish(*entry);
    entry->transfer.reset();  // from here on nothing touches the operation's buffers
    entry->rounds.clear();
    lock.lock();
    entries_.pop_front();
    entry->failure = std::move(failure);
    entry->ended = true;
    ended_.notify_all();
  }
}

// Runs what is left of the operation.
std::optional<Failure> MessageQueue::finish(Entry& entry) {
  try {
    for (;;) {
      if (auto failure = connections_->failure()) return failure;
      if (entry.transfer) entry.transfer->wait(waiting_for_);
      entry.transfer.reset();
      const Round& round = entry.rounds[entry.round];
      const bool is_last = ++entry.round == entry.rounds.size();
      const bool starts_early = !is_last && entry.rounds[entry.round].starts_early;
      if (starts_early) start_round(entry);
      if (round.then) round.then();
      if (is_last) return std::nullopt;
      if (!starts_early) start_round(entry);
    }
  } catch (const std::exception& error) {
    connections_->fail(failure_in(entry, error.what()));
    return connections_->failure();
  }
}

void MessageQueue::start_round(Entry& entry) {
  const Round& round = entry.rounds[entry.round];
  if (round.sends.empty() && round.receives.empty()) return;
  entry.transfer = connections_->start(round, entry.tag);
}

Failure MessageQueue::failure_in(const Entry& entry, const std::string& what) const {
  return {ExitCode::peer_lost, std::string(connections_->transport().backend()) + ": rank " +
                                   std::to_string(rank_) + " of " + std::to_string(size()) +
                                   " in " + entry.call.describe() + " (operation " +
                                   std::to_string(entry.number) + "): " + what +
                                   ". The communicator is broken: end this process, and start the "
                                   "job again from its last checkpoint"};
}

}  // namespace fusedbun::comm

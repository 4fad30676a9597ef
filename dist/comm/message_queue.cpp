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
    entry->ended_at = Clock::now();
    entry->ended = true;
    return entry;
  }
  try {
    start_round(*entry);
    start_early_rounds(*entry, 0);
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
    entry->transfers.clear();  // from here on nothing touches the operation's buffers
    entry->rounds.clear();
    lock.lock();
    entries_.pop_front();
    entry->failure = std::move(failure);
    entry->ended_at = Clock::now();
    entry->ended = true;
    ended_.notify_all();
  }
}

// Runs what is left of the operation.
std::optional<Failure> MessageQueue::finish(Entry& entry) {
  try {
    for (size_t round = 0; round < entry.rounds.size(); ++round) {
      if (auto failure = connections_->failure()) return failure;
      if (entry.started == round) start_round(entry);
      if (entry.transfers.front()) entry.transfers.front()->wait(waiting_for_);
      entry.transfers.pop_front();
      start_early_rounds(entry, round + 1);
      if (entry.rounds[round].then) entry.rounds[round].then();
    }
    return std::nullopt;
  } catch (const std::exception& error) {
    connections_->fail(failure_in(entry, error.what()));
    return connections_->failure();
  }
}

void MessageQueue::start_round(Entry& entry) {
  const Round& round = entry.rounds[entry.started];
  const bool is_local = round.sends.empty() && round.receives.empty();
  entry.transfers.push_back(is_local ? nullptr : connections_->start(round, entry.tag));
  ++entry.started;
}

void MessageQueue::start_early_rounds(Entry& entry, size_t waited_for) {
  while (entry.started < entry.rounds.size() && entry.rounds[entry.started].starts_early &&
         entry.started < waited_for + kRoundsAhead) {
    start_round(entry);
  }
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

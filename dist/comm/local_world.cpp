#include "fusedbun/dist/comm/local_world.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/reduction.h"

namespace fusedbun::comm {
namespace {

using Meeting = LocalWorld::Meeting;

bool is_moving(const Meeting& meeting) {
  return meeting.state == Meeting::State::moving;
}

void copy(const Buffer& from, int64_t from_element, const Buffer& to, int64_t to_element,
          int64_t count) {
  if (count == 0 || address_of(from, from_element) == address_of(to, to_element))
    return;  // in place
  std::memcpy(address_of(to, to_element), address_of(from, from_element),
              static_cast<size_t>(count) * bytes_of(from.type));
}

std::vector<Message> with_peer(const std::vector<Message>& messages, int peer) {
  std::vector<Message> chosen;
  std::ranges::copy_if(messages, std::back_inserter(chosen),
                       [peer](const Message& message) { return message.peer == peer; });
  return chosen;
}

// Whether what one rank sends is what the other expects.
bool fit(const std::vector<Message>& sends, const std::vector<Message>& receives) {
  return std::ranges::equal(sends, receives, {}, &Message::bytes, &Message::bytes);
}

// Moves the data of one operation; calls[r] is rank r's.
void move_data(const std::vector<CollectiveCall>& calls) {
  const int size = static_cast<int>(calls.size());
  const CollectiveCall& first = calls.front();
  std::vector<const void*> parts(calls.size());
  switch (first.operation) {
    case Operation::reduce_scatter:
      for (int r = 0; r < size; ++r) {
        const int64_t offset = offset_of(first.send_counts, r);
        for (size_t k = 0; k < calls.size(); ++k) parts[k] = address_of(calls[k].input, offset);
        const Buffer& output = calls[r].output;
        reduce_in_rank_order(ReduceOp::sum, output.type, parts, output.data, output.count);
      }
      break;
    case Operation::all_gather:
      for (const CollectiveCall& to : calls) {
        for (int k = 0; k < size; ++k) {
          copy(calls[k].input, 0, to.output, offset_of(first.receive_counts, k),
               calls[k].input.count);
        }
      }
      break;
    case Operation::all_reduce:
      for (size_t k = 0; k < calls.size(); ++k) parts[k] = calls[k].input.data;
      reduce_in_rank_order(first.op, first.output.type, parts, first.output.data,
                           first.output.count);
      for (const CollectiveCall& to : calls) copy(first.output, 0, to.output, 0, to.output.count);
      break;
    case Operation::exchange:
      for (int r = 0; r < size; ++r) {
        for (int k = 0; k < size; ++k) {
          const auto sends = with_peer(calls[k].sends, r);
          const auto receives = with_peer(calls[r].receives, k);
          for (size_t i = 0; i < sends.size(); ++i) {
            std::memcpy(receives[i].data, sends[i].data, static_cast<size_t>(sends[i].bytes));
          }
        }
      }
      break;
    case Operation::broadcast:
      for (const CollectiveCall& to : calls)
        copy(calls[first.root].input, 0, to.output, 0, to.output.count);
      break;
    case Operation::barrier:
      break;
  }
}

// Names the first rank whose call does not match; nothing if all is well.
std::string mismatch(const Meeting& meeting, int rank, const CollectiveCall& call) {
  for (size_t r = 0; r < meeting.calls.size(); ++r) {
    if (!meeting.calls[r]) continue;
    const CollectiveCall& other = *meeting.calls[r];
    const int other_rank = static_cast<int>(r);
    if (call.agrees_with(other) &&
        fit(with_peer(call.sends, other_rank), with_peer(other.receives, rank)) &&
        fit(with_peer(other.sends, rank), with_peer(call.receives, other_rank))) {
      continue;
    }
    return mismatch_text("local", meeting.number, {rank, call.describe_to(other_rank)},
                         {other_rank, other.describe_to(rank)});
  }
  return {};
}

}  // namespace

std::shared_ptr<LocalWorld::Meeting> LocalWorld::arrive(int rank, uint64_t number,
                                                        CollectiveCall call) {
  std::unique_lock lock(mutex_);
  const auto [place, is_first] = meetings_.try_emplace(number);
  if (is_first) {
    place->second = std::make_shared<Meeting>();
    place->second->number = number;
    place->second->calls.resize(static_cast<size_t>(size_));
  }
  const auto meeting = place->second;
  if (failure_) return meeting;  // its wait tells
  if (std::string difference = mismatch(*meeting, rank, call); !difference.empty()) {
    break_with({ExitCode::config, difference});
    failure_->raise();
  }
  meeting->calls[static_cast<size_t>(rank)] = std::move(call);
  if (++meeting->arrived == static_cast<size_t>(size_)) {
    finish(*meeting, lock);
  } else {
    require_company(*meeting);
  }
  return meeting;
}

void LocalWorld::leave(int rank, uint64_t number) {
  const std::lock_guard lock(mutex_);
  left_[rank] = number;
  for (const auto& [each, meeting] : meetings_) require_company(*meeting);
}

// Breaks the world if a rank that left is missing here.
void LocalWorld::require_company(const Meeting& meeting) {
  const auto here = std::ranges::find_if(meeting.calls, [](const auto& call) { return !!call; });
  if (here == meeting.calls.end()) return;
  for (const auto& [rank, number] : left_) {
    if (meeting.calls[static_cast<size_t>(rank)]) continue;
    const std::string after = number == 0 ? "before its first operation"
                                          : "after operation " + std::to_string(number - 1);
    break_with({ExitCode::config,
                "local: rank " + std::to_string(rank) + " left " + after + " where rank " +
                    std::to_string(here - meeting.calls.begin()) + " called " +
                    (*here)->describe() + " (operation " + std::to_string(meeting.number) +
                    "): all ranks must call the same operations, and as many"});
  }
}

void LocalWorld::wait(int rank, const Meeting& meeting, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto ended = [&] {
    return meeting.state == Meeting::State::done || (failure_ && !is_moving(meeting));
  };
  if (!changed_.wait_for(lock, timeout, ended)) {
    if (!is_moving(meeting)) give_up(rank, meeting, timeout);
    changed_.wait(lock, ended);
  }
  if (meeting.state != Meeting::State::done) failure_->raise();
}

void LocalWorld::drop(int rank, const Meeting& meeting) {
  std::unique_lock lock(mutex_);
  if (meeting.state == Meeting::State::done) return;
  break_with({ExitCode::peer_lost, "local: rank " + std::to_string(rank) +
                                       " dropped an operation while an error unwound it"});
  changed_.wait(lock, [&] { return !is_moving(meeting); });
}

void LocalWorld::abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  break_with({ExitCode::peer_lost, reason});
}

std::optional<Failure> LocalWorld::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::shared_ptr<LocalWorld> LocalWorld::group(int rank, uint64_t number,
                                              const std::vector<int>& ranks) {
  const std::lock_guard lock(mutex_);
  const auto [place, is_first] = groups_.try_emplace(number);
  if (is_first)
    place->second = {ranks, std::make_shared<LocalWorld>(static_cast<int>(ranks.size()))};
  FUSEDBUN_REQUIRE(place->second.ranks == ranks, ConfigError,
                   "local: rank " + std::to_string(rank) + " asked for another group (number " +
                       std::to_string(number) +
                       ") than a rank before it: all ranks must give the same list");
  return place->second.world;
}

// The last rank has arrived: moves the data, with the lock released so that others can post meanwhile.
void LocalWorld::finish(Meeting& meeting, std::unique_lock<std::mutex>& lock) {
  meeting.state = Meeting::State::moving;
  meetings_.erase(meeting.number);
  lock.unlock();
  std::vector<CollectiveCall> calls;
  for (auto& call : meeting.calls) calls.push_back(std::move(*call));
  move_data(calls);
  lock.lock();
  meeting.state = Meeting::State::done;
  changed_.notify_all();
}

// The first failure is the one that everybody is told.
void LocalWorld::break_with(Failure failure) {
  if (!failure_) failure_ = std::move(failure);
  changed_.notify_all();
}

void LocalWorld::give_up(int rank, const Meeting& meeting, std::chrono::milliseconds timeout) {
  std::string missing;
  for (size_t r = 0; r < meeting.calls.size(); ++r) {
    if (!meeting.calls[r]) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
  }
  break_with({ExitCode::timeout, "local: rank " + std::to_string(rank) + " waited " +
                                     std::to_string(timeout.count()) + " ms for " +
                                     meeting.calls[static_cast<size_t>(rank)]->describe() +
                                     " (operation " + std::to_string(meeting.number) +
                                     "), which rank " + missing + " did not join"});
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/comm/local.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/comm/reduction.h"

namespace fusedbun::comm {
namespace {

std::byte* at(const Buffer& buffer, int64_t element) {
  return static_cast<std::byte*>(buffer.data) +
         element * static_cast<int64_t>(bytes_of(buffer.type));
}

void copy(const Buffer& from, int64_t from_element, const Buffer& to, int64_t to_element,
          int64_t count) {
  if (count == 0 || at(from, from_element) == at(to, to_element)) return;  // in place
  std::memcpy(at(to, to_element), at(from, from_element),
              static_cast<size_t>(count) * bytes_of(from.type));
}

// Moves the data of one operation; calls[r] is rank r's.
void move_data(const std::vector<Call>& calls) {
  const int size = static_cast<int>(calls.size());
  const Call& first = calls.front();
  std::vector<const void*> parts(calls.size());
  switch (first.operation) {
    case Operation::reduce_scatter:
      for (int r = 0; r < size; ++r) {
        const int64_t offset = offset_of(first.send_counts, r);
        for (size_t k = 0; k < calls.size(); ++k) parts[k] = at(calls[k].input, offset);
        const Buffer& output = calls[r].output;
        reduce_in_rank_order(ReduceOp::sum, output.type, parts, output.data, output.count);
      }
      break;
    case Operation::all_gather:
      for (const Call& to : calls) {
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
      for (const Call& to : calls) copy(first.output, 0, to.output, 0, to.output.count);
      break;
    case Operation::all_to_all:
      for (int r = 0; r < size; ++r) {
        for (int k = 0; k < size; ++k) {
          copy(calls[k].input, offset_of(calls[k].send_counts, r), calls[r].output,
               offset_of(calls[r].receive_counts, k), calls[r].receive_counts[k]);
        }
      }
      break;
    case Operation::broadcast:
      for (const Call& to : calls) copy(calls[first.root].input, 0, to.output, 0, to.output.count);
      break;
    case Operation::barrier:
      break;
  }
}

// Where the ranks' calls number `number` meet. Guarded by the world's mutex, except the data
// itself.
struct Meeting {
  enum class State : uint8_t { gathering, moving, done };
  uint64_t number = 0;
  State state = State::gathering;
  std::vector<std::optional<Call>> calls;
  size_t arrived = 0;
};

// "rank 1 called all_gather(f32, counts 1 2) where rank 0 called barrier (operation 7)", or nothing
// if all is well.
std::string mismatch(const Meeting& meeting, int rank, const Call& call) {
  for (size_t r = 0; r < meeting.calls.size(); ++r) {
    if (!meeting.calls[r]) continue;
    const Call& other = *meeting.calls[r];
    const auto mine = static_cast<size_t>(rank);
    std::string difference;
    if (other.describe() != call.describe()) {
      difference = " called " + call.describe() + " where rank " + std::to_string(r) + " called " +
                   other.describe();
    } else if (call.operation == Operation::all_to_all &&
               (call.send_counts[r] != other.receive_counts[mine] ||
                call.receive_counts[r] != other.send_counts[mine])) {
      difference = " and rank " + std::to_string(r) +
                   " called all_to_all with counts that do not match: what one sends is not what "
                   "the other expects";
    }
    if (!difference.empty()) {
      return "local: rank " + std::to_string(rank) + difference + " (operation " +
             std::to_string(meeting.number) +
             "): all ranks must call the same operations in the same order";
    }
  }
  return {};
}

class World {
 public:
  World(int size, std::chrono::milliseconds timeout) : size_(size), timeout_(timeout) {}

  int size() const { return size_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  // Rank `rank` arrives with its call number `number`. Throws ConfigError if it does not match the
  // others'.
  std::shared_ptr<Meeting> arrive(int rank, uint64_t number, Call call) {
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
    if (++meeting->arrived == static_cast<size_t>(size_)) finish(*meeting, lock);
    return meeting;
  }

  void wait(int rank, Meeting& meeting, std::chrono::milliseconds timeout) {
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

  // After it nobody touches the meeting's buffers any more.
  void drop(int rank, Meeting& meeting) {
    std::unique_lock lock(mutex_);
    if (meeting.state == Meeting::State::done) return;
    break_with({ExitCode::peer_lost, "local: rank " + std::to_string(rank) +
                                         " dropped an operation while an error unwound it"});
    changed_.wait(lock, [&] { return !is_moving(meeting); });
  }

  void abort(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    break_with({ExitCode::peer_lost, reason});
  }

  bool broken() {
    const std::lock_guard lock(mutex_);
    return failure_.has_value();
  }

  // The world of the ranks' group number `number`: made by the first that asks.
  std::shared_ptr<World> group(int rank, uint64_t number, const std::vector<int>& ranks) {
    const std::lock_guard lock(mutex_);
    const auto [place, is_first] = groups_.try_emplace(number);
    if (is_first)
      place->second = {ranks, std::make_shared<World>(static_cast<int>(ranks.size()), timeout_)};
    FUSEDBUN_REQUIRE(place->second.ranks == ranks, ConfigError,
                     "local: rank " + std::to_string(rank) + " asked for another group (number " +
                         std::to_string(number) +
                         ") than a rank before it: all ranks must give the same list");
    return place->second.world;
  }

 private:
  struct Group {
    std::vector<int> ranks;
    std::shared_ptr<World> world;
  };

  static bool is_moving(const Meeting& meeting) { return meeting.state == Meeting::State::moving; }

  // The last rank has arrived: moves the data, with the lock released so that others can post
  // meanwhile.
  void finish(Meeting& meeting, std::unique_lock<std::mutex>& lock) {
    meeting.state = Meeting::State::moving;
    meetings_.erase(meeting.number);
    lock.unlock();
    std::vector<Call> calls;
    for (auto& call : meeting.calls) calls.push_back(std::move(*call));
    move_data(calls);
    lock.lock();
    meeting.state = Meeting::State::done;
    changed_.notify_all();
  }

  // The first failure is the one that everybody is told.
  void break_with(Failure failure) {
    if (!failure_) failure_ = std::move(failure);
    changed_.notify_all();
  }

  void give_up(int rank, const Meeting& meeting, std::chrono::milliseconds timeout) {
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

  const int size_;
  const std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Failure> failure_;                         // what every wait throws, once set
  std::map<uint64_t, std::shared_ptr<Meeting>> meetings_;  // not yet complete
  std::map<uint64_t, Group> groups_;
};

class LocalOperation final : public PendingOperation {
 public:
  LocalOperation(std::shared_ptr<World> world, int rank, std::shared_ptr<Meeting> meeting)
      : world_(std::move(world)), rank_(rank), meeting_(std::move(meeting)) {}
  ~LocalOperation() override {
    if (!waited_) world_->drop(rank_, *meeting_);
  }

  void wait(std::chrono::milliseconds timeout) override {
    waited_ = true;
    world_->wait(rank_, *meeting_, timeout);
  }
  void wait_on(Stream, std::chrono::milliseconds timeout) override { wait(timeout); }
  bool aborted() const noexcept override { return world_->broken(); }

 private:
  std::shared_ptr<World> world_;
  int rank_;
  std::shared_ptr<Meeting> meeting_;
  bool waited_ = false;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<World> world, int rank)
      : world_(std::move(world)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return world_->size(); }
  std::string_view backend() const override { return "local"; }
  DeviceKind device() const override { return DeviceKind::cpu; }

  Work reduce_scatter(Buffer input, Buffer output, const Counts& counts) override {
    return post(Call::reduce_scatter(caller(), input, output, counts));
  }
  Work all_gather(Buffer input, Buffer output, const Counts& counts) override {
    return post(Call::all_gather(caller(), input, output, counts));
  }
  Work all_reduce(Buffer inout, ReduceOp op) override {
    return post(Call::all_reduce(caller(), inout, op));
  }
  Work all_to_all(Buffer input, const Counts& send_counts, Buffer output,
                  const Counts& receive_counts) override {
    return post(Call::all_to_all(caller(), input, send_counts, output, receive_counts));
  }
  Work broadcast(Buffer inout, int root) override {
    return post(Call::broadcast(caller(), inout, root));
  }
  Work barrier() override { return post(Call::barrier()); }

  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    check_group(caller(), ranks);
    auto world = world_->group(rank_, next_group_++, ranks);
    const auto mine = std::find(ranks.begin(), ranks.end(), rank_);
    if (mine == ranks.end()) return nullptr;
    return std::make_unique<LocalCommunicator>(std::move(world),
                                               static_cast<int>(mine - ranks.begin()));
  }

  void abort(const std::string& reason) noexcept override { world_->abort(reason); }

 private:
  Caller caller() const { return {"local", rank_, world_->size()}; }

  Work post(Call call) {
    auto meeting = world_->arrive(rank_, next_operation_++, std::move(call));
    return Work(std::make_unique<LocalOperation>(world_, rank_, std::move(meeting)),
                world_->timeout());
  }

  std::shared_ptr<World> world_;
  int rank_;
  uint64_t next_operation_ = 0;
  uint64_t next_group_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_local_communicators(
    int size, std::chrono::milliseconds timeout) {
  FUSEDBUN_REQUIRE(
      size >= 1, ConfigError,
      "local: a world of " + std::to_string(size) + " ranks was asked for: at least 1 is needed");
  const auto world = std::make_shared<World>(size, timeout);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < size; ++rank) {
    communicators.push_back(std::make_unique<LocalCommunicator>(world, rank));
  }
  return communicators;
}

}  // namespace fusedbun::comm

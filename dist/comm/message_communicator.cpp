#include "fusedbun/dist/comm/message_communicator.h"

#include <algorithm>
#include <string>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/operation_queue.h"

namespace fusedbun::comm {
namespace {

class MessageOperation final : public PendingOperation {
 public:
  MessageOperation(std::shared_ptr<OperationQueue> queue,
                   std::shared_ptr<OperationQueue::Entry> entry)
      : queue_(std::move(queue)), entry_(std::move(entry)) {}
  ~MessageOperation() override {
    if (!waited_) queue_->drop(*entry_);
  }

  void wait(std::chrono::milliseconds timeout) override {
    waited_ = true;
    queue_->wait(*entry_, timeout);
  }
  void wait_on(Stream, std::chrono::milliseconds timeout) override { wait(timeout); }
  Clock::time_point ended_at() const override { return entry_->ended_at; }
  bool may_drop() const noexcept override { return queue_->family().failure().has_value(); }

 private:
  const std::shared_ptr<OperationQueue> queue_;
  const std::shared_ptr<OperationQueue::Entry> entry_;
  bool waited_ = false;
};

// Of a group of one rank: no connections, no threads.
class AloneTransport final : public Transport {
 public:
  explicit AloneTransport(std::string_view backend) : backend_(backend) {}

  std::string_view backend() const override { return backend_; }
  int rank() const override { return 0; }
  int size() const override { return 1; }
  TagLayout tags() const override { return {}; }
  std::unique_ptr<Transfer> start(std::span<const Packet>, std::span<const Packet>) override {
    FUSEDBUN_ASSERT(false, "a rank that is alone sends no messages");
  }
  void send_control(int, Slot, const ControlFrame&) override {}
  std::optional<ControlFrame> receive_control(int) override { return std::nullopt; }
  std::unique_ptr<Transport> group(const std::vector<int>&, int, int64_t) override {
    return std::make_unique<AloneTransport>(backend_);
  }
  void close() noexcept override {}

 private:
  const std::string backend_;
};

// Positive, and its negation exists.
int64_t hash_of(const std::vector<int>& ranks) {
  uint64_t hash = ranks.size();
  for (const int rank : ranks) hash = (hash ^ static_cast<uint64_t>(rank + 1)) * 0x100000001b3ull;
  return static_cast<int64_t>(hash >> 1);
}

class MessageCommunicator final : public Communicator {
 public:
  MessageCommunicator(std::shared_ptr<Family> family, std::unique_ptr<Transport> transport,
                      std::chrono::milliseconds timeout)
      : Communicator(timeout),
        queue_(std::make_shared<OperationQueue>(std::move(family), std::move(transport))) {}

  int rank() const override { return queue_->rank(); }
  int size() const override { return queue_->size(); }
  std::string_view backend() const override { return queue_->transport().backend(); }
  DeviceKind device() const override { return DeviceKind::cpu; }

  Work reduce_scatter(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return post(CollectiveCall::reduce_scatter(caller(), input, output, counts));
  }
  Work all_gather(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return post(CollectiveCall::all_gather(caller(), input, output, counts));
  }
  Work all_reduce(Buffer inout, ReduceOp op, ProducerStream) override {
    return post(CollectiveCall::all_reduce(caller(), inout, op));
  }
  Work exchange(std::vector<Message> sends, std::vector<Message> receives,
                ProducerStream) override {
    return post(CollectiveCall::exchange(caller(), std::move(sends), std::move(receives)));
  }
  Work broadcast(Buffer inout, int root, ProducerStream) override {
    return post(CollectiveCall::broadcast(caller(), inout, root));
  }
  Work barrier(ProducerStream) override { return post(CollectiveCall::barrier()); }

  // Ranks agree on a number that none of them has used: two groups that share a pair of ranks never share tags or keys.
  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    validate_group(caller(), ranks);
    const int64_t number = agree_on_group(ranks);
    const auto mine = std::find(ranks.begin(), ranks.end(), rank());
    if (mine == ranks.end()) return nullptr;
    const int place = static_cast<int>(mine - ranks.begin());
    auto group = std::make_unique<MessageCommunicator>(
        queue_->shared_family(), make_transport(ranks, place, number), timeout());
    group->barrier({}).wait();  // what the connections were made with may leave after it
    return group;
  }

  void abort(const std::string& reason) noexcept override {
    queue_->family().fail({ExitCode::peer_lost, reason});
  }
  std::optional<Failure> failure() const override { return queue_->family().failure(); }
  std::optional<int64_t> sent_bytes() const override { return queue_->family().sent_bytes(); }
  std::vector<std::string> pending_operations() const override {
    return queue_->family().pending_operations();
  }

 private:
  CallSite caller() const { return {backend(), rank(), size()}; }

  Work post(CollectiveCall call) {
    return Work(std::make_unique<MessageOperation>(queue_, queue_->post(std::move(call))),
                timeout());
  }

  int64_t agree_on_group(const std::vector<int>& ranks) {
    Family& family = queue_->family();
    const int64_t hash = hash_of(ranks);
    int64_t agreed[] = {family.next_group(), hash, -hash};
    all_reduce({agreed, std::ssize(agreed), DataType::i64}, ReduceOp::max, {}).wait();
    FUSEDBUN_REQUIRE(agreed[1] == -agreed[2], ConfigError,
                     std::string(backend()) + ": rank " + std::to_string(rank()) +
                         " asked for a group of other ranks than another rank did: all ranks must "
                         "give the same list");
    family.set_next_group(agreed[0] + 1);
    return agreed[0];
  }

  std::unique_ptr<Transport> make_transport(const std::vector<int>& ranks, int place,
                                            int64_t number) {
    if (ranks.size() == 1) return std::make_unique<AloneTransport>(backend());
    return queue_->transport().group(ranks, place, number);
  }

  const std::shared_ptr<OperationQueue> queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        std::chrono::milliseconds timeout) {
  return std::make_unique<MessageCommunicator>(std::make_shared<Family>(), std::move(transport),
                                               timeout);
}

}  // namespace fusedbun::comm

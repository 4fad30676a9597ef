#include "fusedbun/dist/comm/message_communicator.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/message_queue.h"

namespace fusedbun::comm {
namespace {

class MessageOperation final : public PendingOperation {
 public:
  MessageOperation(std::shared_ptr<MessageQueue> queue, std::shared_ptr<MessageQueue::Entry> entry)
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
  bool aborted() const noexcept override { return queue_->connections().failure().has_value(); }

 private:
  const std::shared_ptr<MessageQueue> queue_;
  const std::shared_ptr<MessageQueue::Entry> entry_;
  bool waited_ = false;
};

class MessageCommunicator final : public Communicator {
 public:
  MessageCommunicator(std::shared_ptr<Connections> connections, std::vector<int> members, int rank,
                      int64_t group, std::chrono::milliseconds timeout)
      : connections_(connections),
        members_(members),
        timeout_(timeout),
        queue_(std::make_shared<MessageQueue>(std::move(connections), std::move(members), rank,
                                              group)) {}

  int rank() const override { return queue_->rank(); }
  int size() const override { return queue_->size(); }
  std::string_view backend() const override { return connections_->transport().backend(); }
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
  Work exchange(std::vector<Message> sends, std::vector<Message> receives) override {
    return post(Call::exchange(caller(), std::move(sends), std::move(receives)));
  }
  Work broadcast(Buffer inout, int root) override {
    return post(Call::broadcast(caller(), inout, root));
  }
  Work barrier() override { return post(Call::barrier()); }

  // The ranks agree on a number that none of them has used, so two groups with a pair of ranks in common never share
  // tags.
  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    check_group(caller(), ranks);
    int64_t number = connections_->next_group();
    all_reduce({&number, 1, DataType::i64}, ReduceOp::max).wait();
    connections_->set_next_group(number + 1);
    const auto mine = std::find(ranks.begin(), ranks.end(), rank());
    if (mine == ranks.end()) return nullptr;
    std::vector<int> members;
    for (const int rank : ranks) members.push_back(members_[static_cast<size_t>(rank)]);
    return std::make_unique<MessageCommunicator>(
        connections_, std::move(members), static_cast<int>(mine - ranks.begin()), number, timeout_);
  }

  void abort(const std::string& reason) noexcept override {
    connections_->fail({ExitCode::peer_lost, reason});
  }
  std::optional<Failure> failure() const override { return connections_->failure(); }

 private:
  Caller caller() const { return {backend(), rank(), size()}; }

  Work post(Call call) {
    return Work(std::make_unique<MessageOperation>(queue_, queue_->post(std::move(call))),
                timeout_);
  }

  const std::shared_ptr<Connections> connections_;
  const std::vector<int> members_;
  const std::chrono::milliseconds timeout_;
  const std::shared_ptr<MessageQueue> queue_;
};

}  // namespace

std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        std::chrono::milliseconds timeout) {
  std::vector<int> members(static_cast<size_t>(transport->size()));
  std::iota(members.begin(), members.end(), 0);
  const int rank = transport->rank();
  return std::make_unique<MessageCommunicator>(std::make_shared<Connections>(std::move(transport)),
                                               std::move(members), rank, 0, timeout);
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/comm/local.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/local_world.h"

namespace fusedbun::comm {
namespace {

class LocalOperation final : public PendingOperation {
 public:
  LocalOperation(std::shared_ptr<LocalWorld> world, int rank,
                 std::shared_ptr<LocalWorld::Meeting> meeting)
      : world_(std::move(world)), rank_(rank), meeting_(std::move(meeting)) {}
  ~LocalOperation() override {
    if (!waited_) world_->drop(rank_, *meeting_);
  }

  void wait(std::chrono::milliseconds timeout) override {
    waited_ = true;
    world_->wait(rank_, *meeting_, timeout);
  }
  void wait_on(Stream, std::chrono::milliseconds timeout) override { wait(timeout); }
  bool may_drop() const noexcept override { return world_->failure().has_value(); }

 private:
  std::shared_ptr<LocalWorld> world_;
  int rank_;
  std::shared_ptr<LocalWorld::Meeting> meeting_;
  bool waited_ = false;
};

class LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(std::shared_ptr<LocalWorld> world, int rank, std::chrono::milliseconds timeout,
                    DeviceKind device = DeviceKind::cpu)
      : Communicator(timeout), world_(std::move(world)), rank_(rank), device_(device) {}
  ~LocalCommunicator() override {
    if (std::uncaught_exceptions() > 0) {
      world_->abort("local: rank " + std::to_string(rank_) + " left with an exception");
    } else {
      world_->leave(rank_, next_operation_);
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return world_->size(); }
  std::string_view backend() const override { return "local"; }
  DeviceKind device() const override { return device_; }

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

  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    validate_group(caller(), ranks);
    auto world = world_->group(rank_, next_group_++, ranks);
    const auto mine = std::find(ranks.begin(), ranks.end(), rank_);
    if (mine == ranks.end()) return nullptr;
    return std::make_unique<LocalCommunicator>(
        std::move(world), static_cast<int>(mine - ranks.begin()), timeout(), device_);
  }

  void abort(const std::string& reason) noexcept override { world_->abort(reason); }
  std::optional<Failure> failure() const override { return world_->failure(); }

 private:
  CallSite caller() const { return {"local", rank_, world_->size()}; }

  Work post(CollectiveCall call) {
    if (device_ == DeviceKind::cuda) return in_place(call);
    auto meeting = world_->arrive(rank_, next_operation_++, std::move(call));
    return Work(std::make_unique<LocalOperation>(world_, rank_, std::move(meeting)), timeout());
  }

  // The one rank on a GPU: nothing moves, and host code may not touch the memory.
  Work in_place(const CollectiveCall& call) const {
    if (const auto broken = failure()) broken->raise();
    FUSEDBUN_REQUIRE(call.input.data == call.output.data || call.input.count == 0, ConfigError,
                     "local: one rank on a GPU called " + call.describe() +
                         " between two places: give one place");
    return {};
  }

  std::shared_ptr<LocalWorld> world_;
  int rank_;
  DeviceKind device_;
  uint64_t next_operation_ = 0;
  uint64_t next_group_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_single_gpu_communicator() {
  return std::make_unique<LocalCommunicator>(std::make_shared<LocalWorld>(1), 0, kNoDeadline,
                                             DeviceKind::cuda);
}

std::vector<std::unique_ptr<Communicator>> make_local_communicators(
    int size, std::chrono::milliseconds timeout) {
  FUSEDBUN_REQUIRE(
      size >= 1, ConfigError,
      "local: a world of " + std::to_string(size) + " ranks was asked for: at least 1 is needed");
  const auto world = std::make_shared<LocalWorld>(size);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < size; ++rank) {
    communicators.push_back(std::make_unique<LocalCommunicator>(world, rank, timeout));
  }
  return communicators;
}

}  // namespace fusedbun::comm

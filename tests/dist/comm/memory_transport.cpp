#include "memory_transport.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>

namespace fusedbun::comm::testing {
namespace {

// All ranks' mailboxes. A message is copied when it is sent, as an eager protocol does.
struct Post {
  using Route = std::tuple<int, int, int>;  // from, to, tag
  std::mutex mutex;
  std::condition_variable changed;
  std::map<Route, std::deque<std::vector<std::byte>>> boxes;
  std::vector<bool> closed;
  MemoryFaults faults;
};

class MemoryTransfer final : public Transfer {
 public:
  MemoryTransfer(std::shared_ptr<Post> post, int rank, int tag, std::vector<Message> receives,
                 uint64_t seed)
      : post_(std::move(post)),
        rank_(rank),
        tag_(tag),
        receives_(std::move(receives)),
        seed_(seed) {}

  void wait(std::atomic<int>& peer) override {
    if (post_->faults.delay_us_max > 0) {
      std::minstd_rand random(static_cast<unsigned>(seed_));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % post_->faults.delay_us_max));
    }
    for (const Message& message : receives_) {
      peer = message.peer;
      std::unique_lock lock(post_->mutex);
      if (message.peer == post_->faults.lose_messages_to ||
          rank_ == post_->faults.lose_messages_to) {
        throw std::runtime_error("receiving from rank " + std::to_string(message.peer) +
                                 " failed (lost on purpose)");
      }
      auto& box = post_->boxes[{message.peer, rank_, tag_}];
      post_->changed.wait(lock, [&] {
        return !box.empty() || post_->closed[rank_] || post_->closed[message.peer];
      });
      if (box.empty()) throw std::runtime_error("closed");
      if (static_cast<int64_t>(box.front().size()) != message.bytes)
        throw std::runtime_error("sizes differ");
      std::memcpy(message.data, box.front().data(), box.front().size());
      box.pop_front();
    }
  }

 private:
  std::shared_ptr<Post> post_;
  const int rank_;
  const int tag_;
  const std::vector<Message> receives_;
  const uint64_t seed_;
};

class MemoryTransport final : public Transport {
 public:
  MemoryTransport(std::shared_ptr<Post> post, int rank) : post_(std::move(post)), rank_(rank) {}

  std::string_view backend() const override { return "memory"; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(post_->closed.size()); }

  std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                  const std::vector<Message>& receives, int tag) override {
    const std::lock_guard lock(post_->mutex);
    if (rank_ == post_->faults.refuse_start_on) throw std::runtime_error("refused on purpose");
    for (const Message& message : sends) {
      post_->boxes[{rank_, message.peer, tag}].emplace_back(message.data,
                                                            message.data + message.bytes);
    }
    post_->changed.notify_all();
    return std::make_unique<MemoryTransfer>(post_, rank_, tag, receives, ++started_ * 31 + rank_);
  }

  void close() noexcept override {
    const std::lock_guard lock(post_->mutex);
    post_->closed[rank_] = true;
    post_->changed.notify_all();
  }

 private:
  std::shared_ptr<Post> post_;
  const int rank_;
  uint64_t started_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_memory_transports(int size, MemoryFaults faults) {
  const auto post = std::make_shared<Post>();
  post->closed.resize(static_cast<size_t>(size));
  post->faults = faults;
  std::vector<std::unique_ptr<Transport>> transports;
  for (int rank = 0; rank < size; ++rank)
    transports.push_back(std::make_unique<MemoryTransport>(post, rank));
  return transports;
}

}  // namespace fusedbun::comm::testing

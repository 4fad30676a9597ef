#include "memory_transport.h"

#include <atomic>
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
  std::map<std::pair<int, int>, std::deque<ControlFrame>> frames;  // from, to
  std::map<int64_t, std::shared_ptr<Post>> groups;
  std::vector<bool> closed;
  MemoryFaults faults;
};

class MemoryTransfer final : public Transfer {
 public:
  MemoryTransfer(std::shared_ptr<Post> post, int rank, std::vector<Packet> receives, uint64_t seed)
      : post_(std::move(post)), rank_(rank), receives_(std::move(receives)), seed_(seed) {}

  void wait(Progress& progress) override {
    if (post_->faults.delay_us_max > 0) {
      std::minstd_rand random(static_cast<unsigned>(seed_));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % post_->faults.delay_us_max));
    }
    for (const Packet& packet : receives_) {
      progress.waits_for(packet.peer);
      if (post_->faults.packet_delay.count() > 0) {
        std::this_thread::sleep_for(post_->faults.packet_delay);
      }
      std::unique_lock lock(post_->mutex);
      if (packet.peer == post_->faults.lose_messages_to ||
          rank_ == post_->faults.lose_messages_to) {
        throw std::runtime_error("receiving from rank " + std::to_string(packet.peer) +
                                 " failed (lost on purpose)");
      }
      auto& box = post_->boxes[{packet.peer, rank_, packet.tag}];
      post_->changed.wait(
          lock, [&] { return !box.empty() || post_->closed[rank_] || post_->closed[packet.peer]; });
      if (box.empty()) throw std::runtime_error("closed");
      if (static_cast<int64_t>(box.front().size()) != packet.bytes)
        throw std::logic_error("two sizes met under one tag");
      std::memcpy(packet.data, box.front().data(), box.front().size());
      box.pop_front();
      progress.moved();
    }
  }

 private:
  std::shared_ptr<Post> post_;
  const int rank_;
  const std::vector<Packet> receives_;
  const uint64_t seed_;
};

class MemoryTransport final : public Transport {
 public:
  MemoryTransport(std::shared_ptr<Post> post, int rank) : post_(std::move(post)), rank_(rank) {}
  ~MemoryTransport() override { close(); }

  std::string_view backend() const override { return "memory"; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(post_->closed.size()); }
  TagLayout tags() const override { return {.number_bits = 12, .digest_bits = 18}; }

  std::unique_ptr<Transfer> start(std::span<const Packet> sends,
                                  std::span<const Packet> receives) override {
    const std::lock_guard lock(post_->mutex);
    if (rank_ == post_->faults.refuse_start_on) throw std::runtime_error("refused on purpose");
    for (const Packet& packet : sends) {
      post_->boxes[{rank_, packet.peer, packet.tag}].emplace_back(packet.data,
                                                                  packet.data + packet.bytes);
    }
    post_->changed.notify_all();
    return std::make_unique<MemoryTransfer>(post_, rank_,
                                            std::vector<Packet>(receives.begin(), receives.end()),
                                            ++started_ * 31 + static_cast<uint64_t>(rank_));
  }

  void send_control(int peer, Slot, const ControlFrame& frame) override {
    const std::lock_guard lock(post_->mutex);
    if (post_->closed[peer]) throw std::runtime_error("closed");
    post_->frames[{rank_, peer}].push_back(frame);
  }

  std::optional<ControlFrame> receive_control(int peer) override {
    const std::lock_guard lock(post_->mutex);
    auto& frames = post_->frames[{peer, rank_}];
    if (frames.empty()) {
      if (post_->closed[peer]) throw std::runtime_error("closed");
      return std::nullopt;
    }
    const ControlFrame frame = frames.front();
    frames.pop_front();
    return frame;
  }

  std::unique_ptr<Transport> group(const std::vector<int>& ranks, int place,
                                   int64_t number) override {
    const std::lock_guard lock(post_->mutex);
    auto& group = post_->groups[number];
    if (!group) {
      group = std::make_shared<Post>();
      group->closed.resize(ranks.size());
    }
    return std::make_unique<MemoryTransport>(group, place);
  }

  void close() noexcept override {
    const std::lock_guard lock(post_->mutex);
    post_->closed[rank_] = true;
    post_->changed.notify_all();
  }

 private:
  std::shared_ptr<Post> post_;
  const int rank_;
  std::atomic<uint64_t> started_ = 0;
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

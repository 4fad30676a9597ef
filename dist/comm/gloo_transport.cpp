#include "fusedbun/dist/comm/gloo_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>

namespace fusedbun::comm {
namespace {

// Deadlines are the caller's: a wait of Gloo's own that ran out would close every connection of the group.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);

std::vector<at::Tensor> tensor_of(const Message& message) {
  return {at::from_blob(message.data, {message.bytes}, at::TensorOptions().dtype(at::kByte))};
}

class GlooTransfer;

// The transfers that somebody may wait for.
class UnderWay {
 public:
  void add(GlooTransfer* transfer) {
    const std::lock_guard lock(mutex_);
    transfers_.insert(transfer);
  }
  void remove(GlooTransfer* transfer) {
    const std::lock_guard lock(mutex_);
    transfers_.erase(transfer);
  }
  void abort() noexcept;

 private:
  std::mutex mutex_;
  std::set<GlooTransfer*> transfers_;
};

// A c10d work holds Gloo's buffer, which detaches itself from the connection when it is destroyed: destroying the works
// is what makes the memory the caller's again.
class GlooTransfer final : public Transfer {
 public:
  struct Part {
    bool is_send;
    int peer;
    c10::intrusive_ptr<c10d::Work> work;
  };
  std::vector<Part> parts;

  explicit GlooTransfer(std::shared_ptr<UnderWay> under_way) : under_way_(std::move(under_way)) {
    under_way_->add(this);
  }
  ~GlooTransfer() override { under_way_->remove(this); }

  // Waits under way and later ones end.
  void abort() noexcept {
    for (Part& part : parts) {
      try {
        part.work->abort();
      } catch (const std::exception&) {
        // A process group that cannot abort works has closed its connections.
      }
    }
  }

  void wait(std::atomic<int>& peer) override {
    for (Part& part : parts) {
      peer = part.peer;
      const std::string what = std::string(part.is_send ? "sending to" : "receiving from") +
                               " rank " + std::to_string(part.peer);
      bool done = false;
      try {
        done = part.work->wait(kForever);
      } catch (const std::exception& error) {
        throw std::runtime_error(what + " failed (" + first_line(error) + ")");
      }
      if (!done) throw std::runtime_error(what + " was aborted");
    }
  }

 private:
  std::shared_ptr<UnderWay> under_way_;
};

void UnderWay::abort() noexcept {
  const std::lock_guard lock(mutex_);
  for (GlooTransfer* transfer : transfers_) transfer->abort();
}

class GlooTransport final : public Transport {
 public:
  GlooTransport(std::unique_ptr<PointToPoint> messages, int rank, int size,
                std::shared_ptr<void> owned)
      : owned_(std::move(owned)), messages_(std::move(messages)), rank_(rank), size_(size) {}

  std::string_view backend() const override { return "gloo"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                  const std::vector<Message>& receives, int tag) override {
    auto transfer = std::make_unique<GlooTransfer>(under_way_);
    for (const Message& message : receives) {
      auto tensors = tensor_of(message);
      transfer->parts.push_back(
          {false, message.peer, messages_->receive(tensors, message.peer, tag)});
    }
    for (const Message& message : sends) {
      auto tensors = tensor_of(message);
      transfer->parts.push_back({true, message.peer, messages_->send(tensors, message.peer, tag)});
    }
    return transfer;
  }

  // Process groups cannot be closed. But a Gloo wait that runs out of time closes all connections of its group, which
  // is seen at once by the peers: so wait a moment for a message that never comes. Of the waits that are pending here Gloo
  // forgets those for sends that the peer had not asked for yet, so all are aborted.
  void close() noexcept override {
    if (size_ == 1) return;
    try {
      std::vector<at::Tensor> tensors{at::empty({1}, at::TensorOptions().dtype(at::kByte))};
      messages_->receive(tensors, (rank_ + 1) % size_, kTagMax)->wait(std::chrono::milliseconds(1));
    } catch (const std::exception&) {
      // The time-out that was asked for, or connections that are gone already.
    }
    under_way_->abort();
  }

 private:
  std::shared_ptr<void> owned_;  // outlives the group
  std::unique_ptr<PointToPoint> messages_;
  const std::shared_ptr<UnderWay> under_way_ = std::make_shared<UnderWay>();
  const int rank_;
  const int size_;
};

}  // namespace

std::unique_ptr<Transport> make_gloo_transport(std::unique_ptr<PointToPoint> messages, int rank,
                                               int size, std::shared_ptr<void> owned) {
  return std::make_unique<GlooTransport>(std::move(messages), rank, size, std::move(owned));
}

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace fusedbun::comm

#include "fusedbun/dist/comm/gloo_transport.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>

namespace fusedbun::comm {
namespace {

// Deadlines are the caller's: a wait of Gloo's own that ran out would close every connection of the group.
constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);

std::vector<at::Tensor> tensor_of(std::byte* data, int64_t bytes) {
  return {at::from_blob(data, {bytes}, at::TensorOptions().dtype(at::kByte))};
}
std::vector<at::Tensor> tensor_of(ControlFrame& frame) {
  return tensor_of(reinterpret_cast<std::byte*>(&frame), sizeof frame);
}

std::string name_of_message(bool is_send, int peer) {
  return std::string(is_send ? "sending to" : "receiving from") + " rank " + std::to_string(peer);
}

// Adds the rank to Gloo's errors, which name only an address and a port.
template <class Action>
auto named(bool is_send, int peer, Action action) {
  try {
    return action();
  } catch (const std::exception& error) {
    throw std::runtime_error(name_of_message(is_send, peer) + " failed (" + first_line(error) +
                             ")");
  }
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

  void wait(Progress& progress) override {
    for (Part& part : parts) {
      progress.waits_for(part.peer);
      const bool done = named(part.is_send, part.peer, [&] { return part.work->wait(kForever); });
      if (!done)
        throw std::runtime_error(name_of_message(part.is_send, part.peer) + " was aborted");
      progress.moved();
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
  explicit GlooTransport(GlooChannel channel)
      : channel_(std::move(channel)), lines_(channel_.members.size()) {}

  // Frames that were sent leave first: a rank that leaves says so.
  ~GlooTransport() override {
    if (closed_) return;
    if (channel_.is_shared) {
      keep_for_ever(std::move(lines_));
      return;
    }
    flush_last_words(kLastWordsTime);
    for (Line& line : lines_) {
      let_go(line.incoming);
      for (Outgoing& outgoing : line.outgoing) let_go(outgoing.work);
    }
  }

  std::string_view backend() const override { return "gloo"; }
  int rank() const override { return channel_.rank; }
  int size() const override { return static_cast<int>(channel_.members.size()); }
  TagLayout tags() const override { return channel_.tags; }

  std::unique_ptr<Transfer> start(std::span<const Packet> sends,
                                  std::span<const Packet> receives) override {
    auto transfer = std::make_unique<GlooTransfer>(under_way_);
    transfer->parts.reserve(sends.size() + receives.size());
    const std::lock_guard lock(mutex_);
    if (closed_) throw std::runtime_error("the connections are closed");
    for (const Packet& packet : receives) {
      auto tensors = tensor_of(packet.data, packet.bytes);
      transfer->parts.push_back({false, packet.peer, named(false, packet.peer, [&] {
                                   return receive(tensors, packet.peer, packet.tag);
                                 })});
    }
    for (const Packet& packet : sends) {
      auto tensors = tensor_of(packet.data, packet.bytes);
      transfer->parts.push_back({true, packet.peer, named(true, packet.peer, [&] {
                                   return send(tensors, packet.peer, packet.tag);
                                 })});
    }
    return transfer;
  }

  void send_control(int peer, Slot slot, const ControlFrame& frame) override {
    const std::lock_guard lock(mutex_);
    if (closed_) throw std::runtime_error("the connections are closed");
    Outgoing& outgoing = lines_[static_cast<size_t>(peer)].outgoing[static_cast<size_t>(slot)];
    let_go(outgoing.work);  // Gloo reads from the old frame until then
    outgoing.frame = std::make_unique<ControlFrame>(frame);
    auto tensors = tensor_of(*outgoing.frame);
    outgoing.work = send(tensors, peer, control_tag());
  }

  // c10d has no test for "done". But a wait that was aborted beforehand never blocks: it throws what broke the
  // connection, or returns. Gloo tells an operation that waits for its first byte of every break (those in the middle
  // of a message it forgets), and a frame's receive is always such a one.
  std::optional<ControlFrame> receive_control(int peer) override {
    const std::lock_guard lock(mutex_);
    Line& line = lines_[static_cast<size_t>(peer)];
    if (closed_ || !can_poll_) return std::nullopt;
    if (!line.incoming) post_receive(line, peer);
    if (!has_arrived(line)) {
      if (!try_abort(*line.incoming)) return std::nullopt;
      line.incoming->wait(kForever);
      if (!has_arrived(line)) return std::nullopt;
    }
    line.incoming->wait(kForever);  // its last byte is here: this ends at once
    const ControlFrame frame = *line.frame;
    line.incoming.reset();
    return frame;
  }

  std::unique_ptr<Transport> group(const std::vector<int>& ranks, int place,
                                   int64_t number) override {
    return std::make_unique<GlooTransport>(channel_.group(ranks, place, number));
  }

  // Process groups cannot be closed. But a Gloo wait that runs out of time closes all connections of its group, which
  // is seen at once by the peers: so wait a moment for a message that never comes. A peer whose connection is gone
  // makes no such wait, so the next one is tried. Of the waits that are pending here Gloo forgets some, so all are
  // aborted.
  void close() noexcept override {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      closed_ = true;
    }
    flush_last_words(kLastWordsTime);
    for (int step = 1; step < size(); ++step) {
      if (closes_connections((rank() + step) % size())) break;
    }
    under_way_->abort();
  }

 private:
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;
  // How long frames that were sent may take to leave.
  static constexpr std::chrono::milliseconds kLastWordsTime{100};
  static constexpr size_t kSlots = 3;

  // Gloo reads a frame from here until its work is destroyed: so the work goes first.
  struct Outgoing {
    std::unique_ptr<ControlFrame> frame;
    WorkPtr work;
  };
  struct Line {
    std::array<Outgoing, kSlots> outgoing;
    std::unique_ptr<ControlFrame> frame = std::make_unique<ControlFrame>();
    WorkPtr incoming;
  };

  // A message of Gloo's whose memory has gone blocks its connection for good. So frames that a peer may still send or
  // ask for stay where they are if others use the connections.
  static void keep_for_ever(std::vector<Line> lines) {
    static std::mutex mutex;
    static auto& kept = *new std::vector<std::vector<Line>>;
    const std::lock_guard lock(mutex);
    kept.push_back(std::move(lines));
  }

  WorkPtr send(std::vector<at::Tensor>& tensors, int peer, int tag) {
    return channel_.messages->send(tensors, channel_.members[static_cast<size_t>(peer)],
                                   channel_.tag_base + tag);
  }
  WorkPtr receive(std::vector<at::Tensor>& tensors, int peer, int tag) {
    return channel_.messages->receive(tensors, channel_.members[static_cast<size_t>(peer)],
                                      channel_.tag_base + tag);
  }
  int control_tag() const {
    return ((1 << channel_.tags.number_bits) - 1) << channel_.tags.digest_bits;
  }

  void post_receive(Line& line, int peer) {
    line.frame->complete = 0;
    auto tensors = tensor_of(*line.frame);
    line.incoming = receive(tensors, peer, control_tag());
  }
  /// Lets an operation go whose memory may go as well: what Gloo's thread did with it comes before.
  void let_go(WorkPtr& work) noexcept {
    if (!work) return;
    try {
      if (try_abort(*work)) work->wait(kForever);  // it ends at once, after Gloo's last lock
    } catch (const std::exception&) {
      // It was still waiting, or its connection is gone.
    }
    work.reset();
  }
  // Looks at memory that the kernel fills on Gloo's thread, which the thread sanitizer takes for a plain write.
  __attribute__((no_sanitize("thread"))) static bool has_arrived(const Line& line) {
    return __atomic_load_n(&line.frame->complete, __ATOMIC_ACQUIRE) == ControlFrame::kComplete;
  }
  bool try_abort(c10d::Work& work) {
    try {
      work.abort();
    } catch (const std::exception&) {
      can_poll_ = false;  // a process group that was handed in and is not Gloo's
    }
    return can_poll_;
  }

  void flush_last_words(std::chrono::milliseconds patience) noexcept {
    const auto deadline = Clock::now() + patience;
    for (Line& line : lines_) {
      const WorkPtr& work = line.outgoing[static_cast<size_t>(Slot::last_words)].work;
      if (!work) continue;
      try {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
        work->wait(std::max(left, std::chrono::milliseconds(1)));
      } catch (const std::exception&) {
        // The peer is gone, or takes nothing.
      }
    }
  }

  // False if the connection to `peer` is gone already, so that no wait could begin.
  bool closes_connections(int peer) noexcept {
    try {
      std::vector<at::Tensor> tensors{at::empty({1}, at::TensorOptions().dtype(at::kByte))};
      receive(tensors, peer, control_tag() + 1)->wait(std::chrono::milliseconds(1));
    } catch (const std::exception& error) {
      return std::string_view(error.what()).find("Timed out") != std::string_view::npos;
    }
    return false;
  }

  GlooChannel channel_;
  const std::shared_ptr<UnderWay> under_way_ = std::make_shared<UnderWay>();
  std::mutex mutex_;
  std::vector<Line> lines_;  // [peer]
  bool can_poll_ = true;
  std::atomic<bool> closed_{false};
};

}  // namespace

std::unique_ptr<Transport> make_gloo_transport(GlooChannel channel) {
  return std::make_unique<GlooTransport>(std::move(channel));
}

std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace fusedbun::comm

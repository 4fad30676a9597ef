#pragma once
// GlooTransport: point-to-point messages over c10d, for a Gloo process group of our own or any that was handed in.
//
// Thread safety: as Transport.
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "fusedbun/dist/comm/transport.h"

namespace fusedbun::comm {

/// The send and receive that c10d::Backend and c10d::ProcessGroup both have.
class PointToPoint {
 public:
  virtual ~PointToPoint() = default;
  virtual c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int to,
                                              int tag) = 0;
  virtual c10::intrusive_ptr<c10d::Work> receive(std::vector<at::Tensor>& tensors, int from,
                                                 int tag) = 0;
};

template <class Group>
class PointToPointOf final : public PointToPoint {
 public:
  explicit PointToPointOf(c10::intrusive_ptr<Group> group) : group_(std::move(group)) {}
  c10::intrusive_ptr<c10d::Work> send(std::vector<at::Tensor>& tensors, int to, int tag) override {
    return group_->send(tensors, to, tag);
  }
  c10::intrusive_ptr<c10d::Work> receive(std::vector<at::Tensor>& tensors, int from,
                                         int tag) override {
    return group_->recv(tensors, from, tag);
  }

 private:
  c10::intrusive_ptr<Group> group_;
};

/// What a transport stands on. c10d's tags have 31 bits; a message has tag_base plus the caller's tag.
struct GlooChannel {
  /// Lives as long as the transport and its groups: what the connections were made with, a store's server for one.
  std::shared_ptr<void> owned = {};
  std::shared_ptr<PointToPoint> messages;
  std::vector<int> members;  ///< [rank] -> its rank in `messages`
  int rank = 0;
  int tag_base = 0;
  TagLayout tags{.number_bits = 12, .digest_bits = 18};
  /// Others use the connections too, and go on when this transport is destroyed.
  bool is_shared = false;
  /// The channel of a group: as Transport::group().
  std::function<GlooChannel(const std::vector<int>& ranks, int place, int64_t number)> group = {};
};

std::unique_ptr<Transport> make_gloo_transport(GlooChannel channel);

/// The first line of an exception's text: c10d adds a C++ stack to some.
std::string first_line(const std::exception& error);

}  // namespace fusedbun::comm

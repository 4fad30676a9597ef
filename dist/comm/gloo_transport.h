#pragma once
// GlooTransport: point-to-point messages over c10d, for a Gloo process group of our own or any that was handed in.
//
// Thread safety: as Transport.
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

/// `owned` lives as long as the transport does: what the messages' group stands on, a store's server for one.
std::unique_ptr<Transport> make_gloo_transport(std::unique_ptr<PointToPoint> messages, int rank,
                                               int size, std::shared_ptr<void> owned);

/// The first line of an exception's text: c10d adds a C++ stack to some.
std::string first_line(const std::exception& error);

}  // namespace fusedbun::comm

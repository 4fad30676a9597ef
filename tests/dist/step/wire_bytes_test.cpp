// What a sharded step puts on the wire, counted at the transport: within half a percent of what no scheme with all parameters on
// every rank can go below, (W-1)/W of the gradients and (W-1)/W of the parameters out of each rank.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "fusedbun/dist/comm/message_communicator.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "memory_transport.h"

namespace fusedbun {
namespace {

/// Adds the bytes of every message to a count.
class CountingTransport final : public comm::Transport {
 public:
  CountingTransport(std::unique_ptr<comm::Transport> inner, std::atomic<int64_t>& bytes)
      : inner_(std::move(inner)), bytes_(bytes) {}

  std::string_view backend() const override { return inner_->backend(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  comm::TagLayout tags() const override { return inner_->tags(); }
  std::unique_ptr<comm::Transfer> start(std::span<const comm::Packet> sends,
                                        std::span<const comm::Packet> receives) override {
    for (const comm::Packet& packet : sends) bytes_ += packet.bytes;
    return inner_->start(sends, receives);
  }
  void send_control(int peer, Slot slot, const comm::ControlFrame& frame) override {
    bytes_ += static_cast<int64_t>(sizeof(frame));
    inner_->send_control(peer, slot, frame);
  }
  std::optional<comm::ControlFrame> receive_control(int peer) override {
    return inner_->receive_control(peer);
  }
  std::unique_ptr<comm::Transport> group(const std::vector<int>& ranks, int place,
                                         int64_t number) override {
    return std::make_unique<CountingTransport>(inner_->group(ranks, place, number), bytes_);
  }
  void close() noexcept override { inner_->close(); }

 private:
  std::unique_ptr<comm::Transport> inner_;
  std::atomic<int64_t>& bytes_;
};

/// A block of GPT-2 124M with 1,024 of its tokens: matrices of the real widths, because column statistics weigh as 2 / rows.
std::vector<std::vector<int64_t>> shapes() {
  return {{1024, 768}, {1024, 768}, {768}, {768},       {2304, 768}, {2304},      {768, 768},
          {768},       {768},       {768}, {3072, 768}, {3072},      {768, 3072}, {768}};
}

/// Bytes that all ranks together send per step, averaged over two steps with everything that belongs to them.
int64_t bytes_per_step(int size, GradientWire wire, const FusedbunOptions& preset,
                       at::ScalarType type = at::kFloat, UpdateWire updates = UpdateWire::exact) {
  std::atomic<int64_t> bytes = 0;
  std::vector<int64_t> marks;
  auto transports = comm::testing::make_memory_transports(size);
  std::vector<std::jthread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank, transport = std::move(transports[rank])]() mutable {
      const auto communicator = comm::make_message_communicator(
          std::make_unique<CountingTransport>(std::move(transport), bytes),
          std::chrono::seconds(60));
      std::vector<at::Tensor> parameters;
      for (const auto& shape : shapes())
        parameters.push_back(at::full(shape, 0.1, type).requires_grad_());
      ShardedFusedbun optimizer(
          {communicator.get(), communicator.get()}, {torch::optim::OptimizerParamGroup(parameters)},
          preset, {.gradient_wire = wire, .update_wire = updates, .host_window = false});
      for (int step = 0; step < 3; ++step) {
        communicator->barrier().wait();
        if (rank == 0) marks.push_back(bytes);
        communicator->barrier().wait();  // nobody sends before it was read
        for (const at::Tensor& p : parameters) p.mutable_grad() = at::full_like(p, 0.01);
        optimizer.step();
      }
      optimizer.finish();
    });
  }
  threads.clear();
  return (marks.at(2) - marks.at(0)) / 2;
}

int64_t parameter_bytes() {
  int64_t elements = 0;
  for (const auto& shape : shapes()) elements += c10::multiply_integers(shape);
  return elements * static_cast<int64_t>(sizeof(float));
}

class WireBytes : public ::testing::TestWithParam<int> {};

TEST_P(WireBytes, AreGradientsAndParametersOnce) {
  const int size = GetParam();
  for (const auto& [name, preset] : {std::pair("recommended", FusedbunOptions::recommended(1e-3)),
                                     std::pair("sm3", FusedbunOptions::sm3(1e-3))}) {
    const auto sent = static_cast<double>(bytes_per_step(size, GradientWire::exact, preset));
    const double least = 2.0 * (size - 1) * static_cast<double>(parameter_bytes());
    std::printf("%s, %d ranks: %.0f bytes per rank and step, %.5f of 2(W-1)/W of the parameters\n",
                name, size, sent / size, sent / least);
    EXPECT_GE(sent, least);
    EXPECT_LE(sent, 1.005 * least);
  }
}

TEST_P(WireBytes, AreThreeQuartersWithGradientsInBf16) {
  const int size = GetParam();
  const auto sent = static_cast<double>(
      bytes_per_step(size, GradientWire::bf16, FusedbunOptions::recommended(1e-3)));
  const double least = 1.5 * (size - 1) * static_cast<double>(parameter_bytes());
  EXPECT_GE(sent, least);
  EXPECT_LE(sent, 1.005 * least);
}

TEST_P(WireBytes, AreHalfWithUpdatesInBf16AsWell) {
  const int size = GetParam();
  const auto sent = static_cast<double>(bytes_per_step(
      size, GradientWire::bf16, FusedbunOptions::recommended(1e-3), at::kFloat, UpdateWire::bf16));
  const double least = (size - 1) * static_cast<double>(parameter_bytes());
  EXPECT_GE(sent, least);
  EXPECT_LE(sent, 1.01 * least);
}

TEST_P(WireBytes, AreHalfForParametersOfTwoBytes) {
  const int size = GetParam();
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    const auto sent = static_cast<double>(
        bytes_per_step(size, GradientWire::exact, FusedbunOptions::recommended(1e-3), type));
    const double least = (size - 1) * static_cast<double>(parameter_bytes());
    EXPECT_GE(sent, least);
    EXPECT_LE(sent, 1.01 * least);  // column statistics are float64 for every type
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, WireBytes, ::testing::Values(2, 4));

}  // namespace
}  // namespace fusedbun

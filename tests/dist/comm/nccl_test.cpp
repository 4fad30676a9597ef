// The conformance suite on GPUs: ranks are threads, each with a GPU of its own, or all on the only one.
#include "fusedbun/dist/comm/nccl.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <stdexcept>

#include "conformance.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/comm/nccl_probe.h"

namespace fusedbun::comm::testing {
namespace {

void must(cudaError_t result) {
  if (result != cudaSuccess) throw std::runtime_error(cudaGetErrorString(result));
}

// The suite's buffers are ready when cudaMemcpy returns, so any stream will do.
class OnDefaultStream final : public Communicator {
 public:
  explicit OnDefaultStream(std::unique_ptr<Communicator> inner)
      : Communicator(inner->timeout()), inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string_view backend() const override { return inner_->backend(); }
  DeviceKind device() const override { return inner_->device(); }
  Work reduce_scatter(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return follow()->reduce_scatter(input, output, counts, kStream);
  }
  Work all_gather(Buffer input, Buffer output, const Counts& counts, ProducerStream) override {
    return follow()->all_gather(input, output, counts, kStream);
  }
  Work all_reduce(Buffer inout, ReduceOp op, ProducerStream) override {
    return follow()->all_reduce(inout, op, kStream);
  }
  Work exchange(std::vector<Message> sends, std::vector<Message> receives,
                ProducerStream) override {
    return follow()->exchange(std::move(sends), std::move(receives), kStream);
  }
  Work broadcast(Buffer inout, int root, ProducerStream) override {
    return follow()->broadcast(inout, root, kStream);
  }
  Work barrier(ProducerStream) override { return follow()->barrier(kStream); }
  std::unique_ptr<Communicator> group(const std::vector<int>& ranks) override {
    auto group = follow()->group(ranks);
    return group ? std::make_unique<OnDefaultStream>(std::move(group)) : nullptr;
  }
  void abort(const std::string& reason) noexcept override { inner_->abort(reason); }
  std::optional<Failure> failure() const override { return inner_->failure(); }

 private:
  Communicator* follow() {
    inner_->set_timeout(timeout());
    return inner_.get();
  }

  static inline const Stream kStream{cudaStreamLegacy};
  const std::unique_ptr<Communicator> inner_;
};

class NcclWorld final : public World {
 public:
  NcclWorld(int size, int device_count, std::chrono::milliseconds timeout)
      : device_count_(device_count),
        hosts_(make_local_communicators(size, timeout)),
        ranks_(size, [&](int rank) {
          return std::make_unique<OnDefaultStream>(connect_nccl(
              {.rank = rank, .size = size, .device = rank % device_count, .timeout = timeout},
              *hosts_[static_cast<size_t>(rank)]));
        }) {}

  int size() const override { return ranks_.size(); }
  bool adds_in_rank_order() const override { return false; }
  bool abort_reaches_peers() const override { return false; }
  bool names_mismatches() const override { return false; }
  void run(const std::function<void(Communicator&)>& body) override {
    ranks_.run([&](Communicator& comm) {
      must(cudaSetDevice(comm.rank() % device_count_));
      body(comm);
    });
  }
  std::shared_ptr<void> allocate(size_t bytes) override {
    void* data = nullptr;
    must(cudaMalloc(&data, bytes));
    return std::shared_ptr<void>(data, [](void* each) { (void)cudaFree(each); });
  }
  void upload(void* to, const void* from, size_t bytes) override {
    must(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
  }
  void download(void* to, const void* from, size_t bytes) override {
    must(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
  }

 private:
  const int device_count_;
  std::vector<std::unique_ptr<Communicator>> hosts_;
  ThreadWorld ranks_;
};

std::vector<WorldFactory> nccl_worlds(const std::vector<int>& sizes) {
  ::setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 0);  // several ranks on one GPU
  ::setenv("NCCL_RUNTIME_CONNECT", "0", 0);        // or a first launch waits for the peers
  const NcclProbe probe = probe_nccl();
  const int devices = static_cast<int>(probe.gpus.size());
  const std::string problem = devices > 0 ? "" : "CUDA sees no GPU: " + probe.error;
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back({"nccl" + std::to_string(size),
                         [size, devices](std::chrono::milliseconds timeout) {
                           return std::make_unique<NcclWorld>(size, devices, timeout);
                         },
                         problem});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Nccl, Conformance, ::testing::ValuesIn(nccl_worlds({1, 2, 4})), kName);
INSTANTIATE_TEST_SUITE_P(Nccl, Breakage, ::testing::ValuesIn(nccl_worlds({2})), kName);

}  // namespace
}  // namespace fusedbun::comm::testing

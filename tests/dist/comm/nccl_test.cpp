// The conformance suite on GPUs: ranks are threads, each with a GPU of its own, or all on the only one.
#include "fusedbun/dist/comm/nccl.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <stdexcept>

#include "conformance.h"
#include "fusedbun/dist/comm/local.h"

namespace fusedbun::comm::testing {
namespace {

void must(cudaError_t result) {
  if (result != cudaSuccess) throw std::runtime_error(cudaGetErrorString(result));
}

class NcclWorld final : public World {
 public:
  NcclWorld(int size, int device_count, std::chrono::milliseconds timeout)
      : device_count_(device_count),
        hosts_(make_local_communicators(size, timeout)),
        ranks_(size, [&](int rank) {
          return connect_nccl(
              {.rank = rank, .size = size, .device = rank % device_count, .timeout = timeout},
              *hosts_[static_cast<size_t>(rank)]);
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
  const NcclAbility ability = probe_nccl();
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back({"nccl" + std::to_string(size),
                         [size, devices = ability.device_count](std::chrono::milliseconds timeout) {
                           return std::make_unique<NcclWorld>(size, devices, timeout);
                         },
                         ability.problem});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Nccl, Conformance, ::testing::ValuesIn(nccl_worlds({1, 2, 4})), kName);
INSTANTIATE_TEST_SUITE_P(Nccl, Breakage, ::testing::ValuesIn(nccl_worlds({2})), kName);

}  // namespace
}  // namespace fusedbun::comm::testing

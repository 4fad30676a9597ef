// A communicator over a process group that the program has already.
#include "fusedbun/dist/comm/gloo_process_group.h"

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "conformance.h"
#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

c10::intrusive_ptr<c10d::ProcessGroup> make_group(const c10::intrusive_ptr<c10d::Store>& store,
                                                  int rank, int size) {
  const auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::seconds(30));
  options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  const auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(store, rank, size);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, backend);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  return group;
}

std::unique_ptr<World> make_world(int size, std::chrono::milliseconds timeout) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  return std::make_unique<ThreadWorld>(
      size, [&](int rank) { return wrap_process_group(make_group(store, rank, size), timeout); });
}

const WorldFactory kThree{"wrapped3",
                          [](std::chrono::milliseconds timeout) { return make_world(3, timeout); }};
const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Wrapped, Conformance, ::testing::Values(kThree), kName);
INSTANTIATE_TEST_SUITE_P(Wrapped, Breakage, ::testing::Values(kThree), kName);

TEST(WrappedProcessGroup, ItsOwnersCollectivesGoOn) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  run_threads(2, [&](int rank) {
    const auto group = make_group(store, rank, 2);
    const auto comm = wrap_process_group(group, std::chrono::seconds(30));
    std::vector<at::Tensor> theirs{at::ones({8})};
    const auto work = group->allreduce(theirs);
    int64_t ours = 1;
    comm->all_reduce({&ours, 1, DataType::i64}, ReduceOp::sum).wait();
    work->wait();
    EXPECT_EQ(ours, 2);
    EXPECT_EQ(theirs.front().sum().item<float>(), 16.0f);
  });
}

TEST(WrappedProcessGroup, NoneIsRefused) {
  EXPECT_THROW(wrap_process_group({}, std::chrono::seconds(1)), ConfigError);
}

}  // namespace
}  // namespace fusedbun::comm::testing

// Devices and streams as the optimizer finds them, on a stand-in for CUDA's guard: nothing is allocated or launched.
#include "fusedbun/dist/step/placement.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gmock/gmock.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/step/device_stream.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// Two GPUs whose streams are numbers; a stream's handle is 0x1000 times its device plus its number.
class StandIn final : public c10::impl::DeviceGuardImplInterface {
 public:
  at::DeviceType type() const override { return at::kCUDA; }
  at::Device exchangeDevice(at::Device device) const override {
    const at::Device before = getDevice();
    setDevice(device);
    return before;
  }
  at::Device getDevice() const override { return {at::kCUDA, current_device_}; }
  void setDevice(at::Device device) const override { current_device_ = device.index(); }
  void uncheckedSetDevice(at::Device device) const noexcept override { setDevice(device); }
  c10::Stream getStream(at::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, current_streams_[device.index()]);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    current_streams_[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(0x1000 * (1 + stream.device_index()) + stream.id());
  }
  at::DeviceIndex deviceCount() const noexcept override { return 2; }

 private:
  static thread_local at::DeviceIndex current_device_;
  static thread_local std::array<c10::StreamId, 2> current_streams_;
};
thread_local at::DeviceIndex StandIn::current_device_ = 0;
thread_local std::array<c10::StreamId, 2> StandIn::current_streams_ = {0, 0};

const StandIn g_stand_in;
const c10::impl::DeviceGuardImplRegistrar g_registered(at::kCUDA, &g_stand_in);

const at::Device kFirst(at::kCUDA, 0), kSecond(at::kCUDA, 1);

void* handle_of(const comm::ProducerStream& stream) {
  return stream.value().handle();
}

TEST(CurrentStream, IsTheDevicesOwnAndNotThatOfTheCurrentDevice) {
  const c10::DeviceGuard on_first(kFirst);
  EXPECT_EQ(handle_of(current_stream(kSecond)), reinterpret_cast<void*>(0x2000));
  const c10::StreamGuard side(c10::Stream(c10::Stream::UNSAFE, kSecond, 7));
  EXPECT_EQ(handle_of(current_stream(kSecond)), reinterpret_cast<void*>(0x2007));
  EXPECT_EQ(handle_of(current_stream(kFirst)), reinterpret_cast<void*>(0x1000));
}

TEST(CurrentStream, CpusHaveNone) {
  EXPECT_FALSE(current_stream(at::kCPU).has_value());
}

class RecordedWait final : public comm::PendingOperation {
 public:
  explicit RecordedWait(std::vector<void*>& streams) : streams_(streams) {}
  void wait(std::chrono::milliseconds) override { streams_.push_back(nullptr); }
  void wait_on(comm::Stream stream, std::chrono::milliseconds) override {
    streams_.push_back(stream.handle());
  }
  bool may_drop() const noexcept override { return false; }

 private:
  std::vector<void*>& streams_;
};

TEST(WaitFor, TheCurrentStreamWaitsOnAGpuAndTheHostElsewhere) {
  std::vector<void*> streams;
  const auto wait_on = [&](at::Device device) {
    comm::Work work(std::make_unique<RecordedWait>(streams), std::chrono::milliseconds(1));
    wait_for(work, device);
    wait_for(work, device);  // it was waited for already
  };
  wait_on(at::kCPU);
  const c10::StreamGuard side(c10::Stream(c10::Stream::UNSAFE, kSecond, 5));
  wait_on(kSecond);
  EXPECT_THAT(streams, ::testing::ElementsAre(nullptr, reinterpret_cast<void*>(0x2005)));
}

TEST(Placement, WithoutAJobItIsTheCurrentGpu) {
  const c10::DeviceGuard on_second(kSecond);
  EXPECT_EQ(current_placement(true).device, kSecond);
  EXPECT_EQ(current_placement(false).device, at::Device(at::kCPU));
}

TEST(Placement, AParameterElsewhereIsNamedWithTheGpuAndWhatToDo) {
  const Placement second{.device = kSecond, .gpu_uuid = "GPU-6f1c"};
  EXPECT_EQ(why_not_there(kSecond, second), "");
  EXPECT_EQ(why_not_there(at::kCPU, {}), "");
  EXPECT_EQ(why_not_there(kFirst, second),
            "is on cuda:0, but this rank's GPU is cuda:1 (GPU-6f1c): move the model with "
            "to(job.placement().device) before the optimizer is made");
  EXPECT_THAT(why_not_there(at::kCPU, second),
              HasSubstr("is on cpu, but this rank's GPU is cuda:1"));
  EXPECT_EQ(
      why_not_there(kFirst, {}),
      "is on cuda:0, but this job's parameters are on the CPU: make the Job with use_gpu = true "
      "(fusedbun train: --device cuda), or move the model with to(torch::kCPU)");
}

class MisplacedOptimizer : public ::testing::Test {
 protected:
  void make(comm::Communicator& data, std::optional<Placement> placement,
            const at::TensorOptions& options = {}) {
    torch::OrderedDict<std::string, torch::Tensor> model;
    model.insert("a", at::zeros({8, 8}, options).requires_grad_());
    ShardedFusedbun({&data, host_.get(), nullptr, std::move(placement)}, model,
                    FusedbunOptions::recommended(0.1));
  }
  std::unique_ptr<comm::Communicator> host_ = std::move(comm::make_local_communicators(1).front());
  std::unique_ptr<comm::Communicator> gpu_ = comm::make_single_gpu_communicator();
};

TEST_F(MisplacedOptimizer, AParameterThatIsElsewhereIsRefused) {
  EXPECT_THAT([&] { make(*host_, Placement{}, at::TensorOptions(at::kMeta)); },
              ThrowsMessage<ConfigError>(HasSubstr(
                  "rank 0: parameter 'a' is on meta, but this job's parameters are on the CPU")));
  make(*host_, std::nullopt);
}

TEST_F(MisplacedOptimizer, AChannelThatMovesOtherMemoryIsRefused) {
  EXPECT_THAT([&] { make(*host_, Placement{.device = kSecond}); },
              ThrowsMessage<ConfigError>(HasSubstr(
                  "the parameters' place is cuda:1, but the data channel (local) moves host "
                  "memory: take both from Job::channels()")));
  EXPECT_THAT([&] { make(*gpu_, Placement{}); },
              ThrowsMessage<ConfigError>(HasSubstr("moves GPU memory")));
  EXPECT_THAT([&] { make(*gpu_, Placement{.device = at::Device(at::kCUDA)}); },
              ThrowsMessage<ConfigError>(HasSubstr("a GPU without a number")));
}

}  // namespace
}  // namespace fusedbun

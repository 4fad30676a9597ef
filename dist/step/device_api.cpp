#include "fusedbun/dist/step/device_api.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <mutex>
#include <string>

#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/step/tensor_kernels.h"

namespace fusedbun {
namespace {

class CpuApi final : public DeviceApi {
 public:
  at::Tensor allocate(int64_t elements, at::ScalarType type) override {
    return at::zeros({elements}, at::TensorOptions().dtype(type));
  }
  void zero(std::span<const at::Tensor> memory) override {
    for (const at::Tensor& each : memory) each.zero_();
  }
  void copy(std::span<const DeviceCopy> copies) override {
    for (const DeviceCopy& each : copies) each.to.copy_(each.from);
  }
  bool intake(const at::Tensor&, std::span<const DeviceCopy> pieces, at::Tensor&) override {
    bool finite = true;
    for (const DeviceCopy& piece : pieces) finite &= copy_and_test(piece.from, piece.to);
    return finite;
  }
  bool squares_are_finite(const at::Tensor& gradient, at::Tensor&) override {
    return fusedbun::squares_are_finite(gradient.contiguous());
  }
  double norm(const at::Tensor& memory) override {
    return at::linalg_vector_norm(memory, 2, {}, false, at::kDouble).item<double>();
  }
  std::unique_ptr<DeviceEvent> record() override { return nullptr; }
  void wait_for(const DeviceEvent&) override {}
};

class StreamEvent final : public DeviceEvent {
 public:
  explicit StreamEvent(at::DeviceType type) : event(type) {}
  c10::Event event;
};

class GpuApi final : public DeviceApi {
 public:
  explicit GpuApi(at::Device device) : device_(device), streams_(device.type()) {}

  at::Tensor allocate(int64_t elements, at::ScalarType type) override {
    return at::zeros({elements}, at::TensorOptions(device_).dtype(type));
  }
  void zero(std::span<const at::Tensor> memory) override {
    if (!memory.empty()) at::_foreach_zero_(at::TensorList(memory.data(), memory.size()));
  }
  void copy(std::span<const DeviceCopy> copies) override {
    std::vector<at::Tensor> to, from;
    for (const DeviceCopy& each : copies) {
      to.push_back(each.to);
      from.push_back(each.from);
    }
    if (!to.empty()) at::_foreach_copy_(to, from);
  }
  bool intake(const at::Tensor& gradient, std::span<const DeviceCopy> pieces,
              at::Tensor& device_nonfinite) override {
    copy(pieces);
    int64_t elements = 0;
    for (const DeviceCopy& piece : pieces) elements += piece.from.numel();
    if (elements == gradient.numel()) return squares_are_finite(gradient, device_nonfinite);
    for (const DeviceCopy& piece : pieces) squares_are_finite(piece.from, device_nonfinite);
    return true;
  }
  bool squares_are_finite(const at::Tensor& gradient, at::Tensor& device_nonfinite) override {
    const at::Tensor wide = gradient.to(arithmetic_type(gradient.scalar_type()));
    device_nonfinite.add_(at::isfinite(wide.square()).logical_not().any());
    return true;
  }
  double norm(const at::Tensor& memory) override {
    return at::linalg_vector_norm(memory, 2, {}, false, at::kDouble).item<double>();
  }
  std::unique_ptr<DeviceEvent> record() override {
    auto recorded = std::make_unique<StreamEvent>(device_.type());
    recorded->event.record(streams_.getStream(device()));
    return recorded;
  }
  void wait_for(const DeviceEvent& event) override {
    static_cast<const StreamEvent&>(event).event.block(streams_.getStream(device()));
  }

 private:
  at::Device device() const { return device_.has_index() ? device_ : streams_.getDevice(); }

  at::Device device_;
  c10::impl::VirtualGuardImpl streams_;
};

}  // namespace

DeviceApi& device_api(at::Device device) {
  static CpuApi cpu;
  if (device.is_cpu()) return cpu;
  static std::mutex mutex;
  static std::map<std::string, GpuApi> gpus;
  const std::lock_guard lock(mutex);
  return gpus.try_emplace(device.str(), device).first->second;
}

}  // namespace fusedbun

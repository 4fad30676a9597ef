#include "fusedbun/dist/step/device_api.h"

#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_zero.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/dist/step/tensor_kernels.h"

namespace fusedbun {
namespace {

class CpuApi final : public DeviceApi {
 public:
  at::Tensor allocate(int64_t elements, at::ScalarType type) override {
    return at::zeros({elements}, at::TensorOptions().dtype(type));
  }
  void zero(std::span<const DeviceMemory> memory) override {
    for (const auto& [start, bytes] : memory) std::memset(start, 0, static_cast<size_t>(bytes));
  }
  void copy(std::span<const DeviceCopy> copies, at::ScalarType type) override {
    const size_t size = c10::elementSize(type);
    for (const auto& [from, to, elements] : copies) {
      std::memcpy(to, from, static_cast<size_t>(elements) * size);
    }
  }
  bool intake(const at::Tensor& gradient, std::span<const DeviceCopy> pieces, at::ScalarType to,
              at::Tensor&) override {
    const ElementType from_type = fusedbun::element_type(gradient.scalar_type());
    const ElementType to_type = fusedbun::element_type(to);
    bool finite = true;
    for (const DeviceCopy& piece : pieces) {
      finite &= copy_and_test(from_type, piece.from, to_type, piece.to, piece.elements);
    }
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
  void zero(std::span<const DeviceMemory> memory) override {
    std::vector<at::Tensor> tensors;
    for (const auto& [start, bytes] : memory) tensors.push_back(at_place(start, bytes, at::kByte));
    if (!tensors.empty()) at::_foreach_zero_(tensors);
  }
  void copy(std::span<const DeviceCopy> copies, at::ScalarType type) override {
    copy_converted(copies, type, type);
  }
  bool intake(const at::Tensor& gradient, std::span<const DeviceCopy> pieces, at::ScalarType to,
              at::Tensor& device_nonfinite) override {
    copy_converted(pieces, gradient.scalar_type(), to);
    int64_t elements = 0;
    for (const DeviceCopy& piece : pieces) elements += piece.elements;
    if (elements == gradient.numel()) return squares_are_finite(gradient, device_nonfinite);
    for (const DeviceCopy& piece : pieces) {
      squares_are_finite(at_place(piece.from, piece.elements, gradient.scalar_type()),
                         device_nonfinite);
    }
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
  at::Tensor at_place(const void* start, int64_t elements, at::ScalarType type) const {
    return at::from_blob(const_cast<void*>(start), {elements},
                         at::TensorOptions(device_).dtype(type));
  }
  void copy_converted(std::span<const DeviceCopy> copies, at::ScalarType from_type,
                      at::ScalarType to_type) const {
    std::vector<at::Tensor> to, from;
    for (const DeviceCopy& each : copies) {
      to.push_back(at_place(each.to, each.elements, to_type));
      from.push_back(at_place(each.from, each.elements, from_type));
    }
    if (!to.empty()) at::_foreach_copy_(to, from);
  }

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

#pragma once
// DeviceMove: pieces of tensors that one launch copies, converts and tests on their way (gradient_cuda.h), from wherever the tensors are this
// time. What stays, the pieces, is uploaded once.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "fusedbun/core/gpu/device_api.h"

namespace fusedbun {

class DeviceMove {
 public:
  DeviceMove() = default;
  /// `sources`: how many tensors the pieces come from.
  DeviceMove(DeviceApi& api, at::Device device, std::vector<device::MovePiece> pieces,
             int64_t sources, CudaStream stream);

  /// Where the pieces come from, until it is said anew.
  void set_sources(std::span<const device::MoveSource> sources, CudaStream stream) const;
  /// Moves all pieces. `control`: StepControl::nonfinite is set where g·g of an element is not
  /// finite; null: nothing is tested.
  void run(device::StepControl* control, CudaStream stream) const;
  void run(std::span<const device::MoveSource> sources, device::StepControl* control,
           CudaStream stream) const {
    set_sources(sources, stream);
    run(control, stream);
  }
  /// Adds the squares of all pieces to `sum`, on the device.
  void add_squares(double* sum, CudaStream stream);

 private:
  DeviceApi* api_ = nullptr;
  DeviceMemory memory_, partials_;
  device::MoveSource* sources_ = nullptr;  ///< on the device
  device::MoveTable table_;
};

/// Where the elements of a contiguous tensor lie.
device::Gradient gradient_of(const at::Tensor& tensor);
device::MoveSource source_of(const at::Tensor& tensor);

}  // namespace fusedbun

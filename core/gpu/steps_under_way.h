#pragma once
// StepsUnderWay: the steps that a GPU was given and whose outcome the host has not heard yet: was it skipped for non-finite gradients, what
// was the gradient's norm? The device decides and counts for itself (StepControl); the host hears of it a step or two later, and waits only
// where kStepsUnderWay steps would be open.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <deque>
#include <memory>
#include <vector>

#include "fusedbun/core/gpu/device_api.h"

namespace fusedbun {

class StepsUnderWay {
 public:
  StepsUnderWay(DeviceApi& api, at::Device device, CudaStream stream);

  device::StepControl* control() const { return control_; }
  /// Squares of the summed gradient are added here before `offer`.
  double* squares() const { return squares_; }
  /// After `offer`, two float64: what other ranks add to before `decide`.
  device::Agreed* agreed() const { return agreed_; }

  void offer(CudaStream stream);
  /// Gradients in which the device has found a NaN or inf do not count. Squares are added of those alone that do.
  void forget_gradients(CudaStream stream) {
    api_.zero(&control_->nonfinite, sizeof control_->nonfinite, stream);
  }
  /// What this rank would offer; for who decides on the host. Waits for the GPU.
  device::Agreed read_own(CudaStream stream);
  /// The squares that have been added since the last offer, and others in their place. The first waits for the GPU.
  double read_squares(CudaStream stream);
  void set_squares(double squares, CudaStream stream);
  /// By what a loss is multiplied: float32, no dimensions, on the device. It is control()->loss_scale.scale, so a loss that is multiplied
  /// by it is scaled as the step before has decided, of which the host has not heard.
  at::Tensor loss_scale() const;
  void set_loss_scale(const LossScaleState& state, CudaStream stream);
  /// The step is decided, and under way from now on.
  void decide(const device::StepInputs* inputs, CudaStream stream);

  /// Outcomes that have come in since the last call, oldest first. Waits until another step may be opened.
  std::vector<device::StepOutcome> arrived();
  /// The same, until that many steps are open: what is heard then depends on no clock, so all ranks hear the same.
  std::vector<device::StepOutcome> arrived_but(int open);
  int open() const { return static_cast<int>(open_.size()); }
  /// Skipped steps among those whose outcome has come in.
  int64_t skipped() const { return skipped_; }

 private:
  template <class T>
  T read(const T* from, CudaStream stream);

  DeviceApi& api_;
  DeviceMemory memory_;  ///< control, agreed, squares, outcome
  device::StepControl* control_ = nullptr;
  device::Agreed* agreed_ = nullptr;
  double* squares_ = nullptr;
  device::StepOutcome* outcome_ = nullptr;
  std::shared_ptr<std::byte> heard_;  ///< pinned, [kStepsUnderWay] outcomes
  std::deque<std::unique_ptr<DeviceEvent>> open_;
  int64_t decided_ = 0;
  int64_t skipped_ = 0;
};

}  // namespace fusedbun

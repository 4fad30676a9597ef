#include "fusedbun/core/gpu/steps_under_way.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace fusedbun {
namespace {

// What the device keeps for one optimizer.
struct Kept {
  device::StepControl control;
  device::Agreed agreed;
  double squares = 0;
  device::StepOutcome outcome;
};

}  // namespace

StepsUnderWay::StepsUnderWay(DeviceApi& api, at::Device device, CudaStream stream)
    : api_(api),
      memory_(api, at::empty({static_cast<int64_t>(sizeof(Kept))},
                             at::TensorOptions(device).dtype(at::kByte))),
      heard_(api.allocate_pinned(device::kStepsUnderWay *
                                 static_cast<int64_t>(sizeof(device::StepOutcome)))) {
  auto* const kept = static_cast<Kept*>(memory_.tensor().data_ptr());
  control_ = &kept->control;
  agreed_ = &kept->agreed;
  squares_ = &kept->squares;
  outcome_ = &kept->outcome;
  const Kept none;
  api.upload(kept, std::as_bytes(std::span(&none, 1)), stream);
}

void StepsUnderWay::offer(CudaStream stream) {
  api_.run(stream, [offer = api_.kernels().offer, squares = squares_, control = control_,
                    agreed = agreed_](CudaStream on) { offer(squares, control, agreed, on); });
}

device::Agreed StepsUnderWay::read_own(CudaStream stream) {
  offer(stream);
  return read(agreed_, stream);
}

double StepsUnderWay::read_squares(CudaStream stream) {
  return read(squares_, stream);
}

at::Tensor StepsUnderWay::loss_scale() const {
  constexpr int64_t kAt = offsetof(Kept, control) + offsetof(device::StepControl, loss_scale) +
                          offsetof(LossScaleState, scale);
  return memory_.tensor().narrow(0, kAt, sizeof(float)).view(at::kFloat).squeeze(0);
}

void StepsUnderWay::set_loss_scale(const LossScaleState& state, CudaStream stream) {
  api_.upload(&control_->loss_scale, std::as_bytes(std::span(&state, 1)), stream);
}

void StepsUnderWay::set_squares(double squares, CudaStream stream) {
  api_.upload(squares_, std::as_bytes(std::span(&squares, 1)), stream);
}

template <class T>
T StepsUnderWay::read(const T* from, CudaStream stream) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  const auto pinned = api_.allocate_pinned(kBytes);
  api_.download(pinned.get(), from, kBytes, stream);
  api_.record(stream)->wait();
  T value;
  std::memcpy(&value, pinned.get(), sizeof value);
  return value;
}

void StepsUnderWay::decide(const device::StepInputs* inputs, CudaStream stream) {
  api_.run(stream,
           [decide = api_.kernels().decide, agreed = agreed_, inputs, control = control_,
            outcome = outcome_](CudaStream on) { decide(agreed, inputs, control, outcome, on); });
  constexpr auto kBytes = static_cast<int64_t>(sizeof(device::StepOutcome));
  api_.download(heard_.get() + decided_++ % device::kStepsUnderWay * kBytes, outcome_, kBytes,
                stream);
  open_.push_back(api_.record(stream));
}

std::vector<device::StepOutcome> StepsUnderWay::arrived() {
  // One more may be opened, and the device then counts on as many sets of factors.
  int stay = open();
  for (auto event = open_.begin(); event != open_.end() && (*event)->is_reached(); ++event) --stay;
  return arrived_but(std::min(stay, device::kStepsUnderWay - 2));
}

std::vector<device::StepOutcome> StepsUnderWay::arrived_but(int stay) {
  std::vector<device::StepOutcome> outcomes;
  while (open() > stay) {
    open_.front()->wait();
    const int64_t step = decided_ - open();
    open_.pop_front();
    device::StepOutcome outcome;
    std::memcpy(&outcome, heard_.get() + step % device::kStepsUnderWay * sizeof outcome,
                sizeof outcome);
    skipped_ = outcome.skipped;
    outcomes.push_back(outcome);
  }
  return outcomes;
}

}  // namespace fusedbun

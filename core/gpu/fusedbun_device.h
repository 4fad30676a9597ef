#pragma once
// FusedbunDevice: the step of Fusedbun where its parameters are on one GPU: a handful of launches for all of them, and no waiting. Whether a
// non-finite gradient skips the step is decided there; t of the parameters is set right when the host hears of it.
//
// Thread safety: one thread at a time.
#include <deque>
#include <memory>
#include <vector>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/core/gpu/device_move.h"
#include "fusedbun/core/gpu/device_step.h"
#include "fusedbun/core/gpu/steps_under_way.h"

namespace fusedbun {

class FusedbunDevice {
 public:
  /// A parameter that has a gradient, as it is now.
  struct Stepped {
    at::Tensor parameter;
    at::Tensor rows;           ///< [rows, m], contiguous
    at::Tensor gradient_rows;  ///< the same shape
    RowRange range;
    FusedbunParamState* state = nullptr;
    const Options* options = nullptr;
    int index = 0;  ///< among all parameters of the optimizer; ascending
  };

  FusedbunDevice(DeviceApi& api, at::Device device);

  /// A gradient that is not finite leaves everything as it was, where its group's nonfinite is skip.
  void step(const std::vector<Stepped>& stepped);
  at::Device device() const { return device_; }
  /// Hears of all steps: FusedbunParamState::told_skips and skipped_steps are complete then. Waits for the GPU.
  void settle() { hear(/*all=*/true); }
  int64_t skipped_steps() const { return under_way_.skipped(); }

 private:
  // Everything that the tables depend on.
  struct Basis {
    const void* rows;
    int index;
    std::vector<const void*> state;  // its tensors
    at::ScalarType type;
    Structure structure;
    bool centralize, use_rms;
    bool operator==(const Basis&) const = default;
  };
  // Where the skips of a parameter are counted: lives on where the program throws its state away.
  using Skips = std::vector<std::shared_ptr<int64_t>>;
  struct Tables {
    DeviceStep step;
    DeviceMove test;
  };

  void hear(bool all);
  void build(const std::vector<Stepped>& stepped, CudaStream stream);
  DevicePart part_of(const Stepped& stepped, int group) const;
  void measure_unknown(const std::vector<Stepped>& stepped, CudaStream stream);
  void set_inputs(const std::vector<Stepped>& stepped,
                  const std::vector<device::Gradient>& gradients, bool skips, CudaStream stream);

  DeviceApi& api_;
  const at::Device device_;
  StepsUnderWay under_way_;
  std::vector<Basis> basis_;
  std::unique_ptr<Tables> tables_;
  std::deque<Skips> open_;  ///< of the steps that the host has not heard of
};

}  // namespace fusedbun

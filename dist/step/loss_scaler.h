#pragma once
// LossScaler: the dynamic loss scale of one optimizer (ShardedOptions::dynamic_loss_scale). Losses are multiplied by a tensor, not by a
// number: on a GPU whose kernels step the rows, the device changes it where it decides whether a step is skipped, and the host, which hears
// of it steps later, never waits. Where the host decides it changes the tensor itself.
//
// Invariant: the gradients of a step are of losses multiplied by what the tensor was between the step before and this one. A loss that was
// multiplied earlier, and whose backward pass runs now, is scaled by what the tensor is now, because its graph holds the tensor.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "fusedbun/core/gpu/steps_under_way.h"
#include "fusedbun/core/loss_scale.h"
#include "fusedbun/core/options.h"

namespace fusedbun {

class LossScaler {
 public:
  /// Without rules losses stay as they are. `steps` has the scale where parameters are on a GPU, and outlives this; null: on CPUs.
  LossScaler(const std::optional<LossScaleRules>& rules, StepsUnderWay* steps, at::Device device);

  const std::optional<LossScaleRules>& rules() const { return rules_; }
  at::Tensor scaled(const at::Tensor& loss);
  /// Why this rank's step must be refused; empty: nothing is wrong. `has_gradients`: it has some.
  std::string problem(const std::vector<Options>& groups, bool has_gradients) const;

  /// Between two steps, as far as the host knows.
  const LossScaleState& state() const { return state_; }
  /// The host has decided a step, or has heard what the device made of one.
  void decide(bool skipped);
  void hear(const LossScaleState& state) { state_ = state; }
  void restore(const LossScaleState& state);
  /// The step is over: gradients of the next one need a loss that was scaled after this.
  void end_step() { has_scaled_ = false; }

 private:
  void write();

  std::optional<LossScaleRules> rules_;
  StepsUnderWay* steps_;
  at::Device device_;
  LossScaleState state_;
  at::Tensor scale_;         ///< float32, no dimensions
  bool has_scaled_ = false;  ///< some loss since the last step
};

/// Throws ConfigError for rules that are out of range.
void validate(const LossScaleRules& rules);

}  // namespace fusedbun

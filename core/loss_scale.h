#pragma once
// The rule of dynamic loss scaling: the loss is multiplied by a scale before backward, so that gradients in float16 neither overflow nor
// vanish, and the step divides it out. It is torch.amp.GradScaler's rule (Micikevicius et al., Mixed Precision Training, 2018): multiplied
// by `growth` after `growth_interval` good steps at one scale, by `backoff` after a step that was skipped because a gradient was not finite.
//
// CPUs and GPUs evaluate this one function, in float32, so they have the same scales.
//
// Thread safety: pure functions.
#include <cstdint>

namespace fusedbun {

/// The defaults are GradScaler's.
struct LossScaleRules {
  float initial = 65536;
  float growth = 2;
  float backoff = 0.5F;
  int64_t growth_interval = 2000;  ///< good steps
  /// Below it gradients that are good in float32 are good in float16 as well: DeepSpeed and Megatron-LM stop falling here too.
  float minimum = 1;
  bool operator==(const LossScaleRules&) const = default;
};

/// Between two steps; what a checkpoint keeps.
struct LossScaleState {
  float scale = 1;               ///< of the next step
  int64_t good_steps = 0;        ///< at this scale, since it changed last
  int64_t skipped_in_a_row = 0;  ///< steps, up to the last one
  bool operator==(const LossScaleState&) const = default;
};

/// The state after a step that was `skipped` or not. minimum <= scale <= what float32 can hold.
constexpr LossScaleState after_step(const LossScaleRules& rules, LossScaleState state,
                                    bool skipped) {
  if (skipped) {
    const float smaller = state.scale * rules.backoff;
    return {smaller > rules.minimum ? smaller : rules.minimum, 0, state.skipped_in_a_row + 1};
  }
  state.skipped_in_a_row = 0;
  if (++state.good_steps < rules.growth_interval) return state;
  constexpr float kLargest = 3.40282347e+38F;
  const float larger = state.scale * rules.growth;
  return {larger <= kLargest ? larger : state.scale, 0, 0};
}

}  // namespace fusedbun

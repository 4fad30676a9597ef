#pragma once
// The optimizers that the training loop is run with, each with its way of holding a model: ShardedFusedbun, and LibTorch's fused AdamW by the
// operation that Python's torch.optim.AdamW(fused=True) calls. All clip to a norm of 1 where they can.
//
// Thread safety: values; a TrainStep: one thread.
#include <ATen/core/Tensor.h>
#include <torch/ordered_dict.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun::gpu_check {

struct Contestant {
  std::string name;
  std::string preset = {};       ///< of ShardedFusedbun; empty: AdamW
  bool bf16_parameters = true;   ///< false: float32 under LibTorch's autocast to bfloat16
  bool float32_masters = false;  ///< AdamW: bfloat16 parameters beside their float32 masters
  bool steps_in_backward =
      false;  ///< each parameter, or bucket, as soon as its gradient is final, which then goes
};

const std::vector<Contestant>& contestants();
/// Throws ConfigError, which lists the names.
const Contestant& contestant_of(const std::string& name);

class TrainStep {
 public:
  TrainStep() = default;
  TrainStep(const TrainStep&) = delete;  // has hooks in the model
  virtual ~TrainStep() = default;
  /// After backward(); p.grad is gone when it returns.
  virtual void step() = 0;
  /// Waits for what step() left under way; once, after the last one.
  virtual void finish() {}
  /// What the optimizer holds from step to step, parameters and gradients not counted.
  virtual int64_t state_bytes() const = 0;
  /// What stands of gradients at once, by the law: all of them, or two buckets.
  virtual int64_t gradient_bytes() const = 0;
};

/// `channels` are used by ShardedFusedbun alone.
std::unique_ptr<TrainStep> make_train_step(
    const Contestant& contestant, const Channels& channels,
    const torch::OrderedDict<std::string, at::Tensor>& parameters);

}  // namespace fusedbun::gpu_check

#pragma once
// DeviceUpdate: ShardUpdate's side of a GPU. It steps this rank's rows by a launch per bucket (core/device_step.h), lets the ranks' devices
// agree on skip and clip among themselves, and hears of it steps later: the outcome of a step is known when the step after the next begins,
// on every rank at the same call.
//
// Thread safety: one thread at a time.
#include <ATen/core/Tensor.h>

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "fusedbun/core/gpu/device_step.h"
#include "fusedbun/core/gpu/steps_under_way.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/sharded_model.h"

namespace fusedbun {

class DeviceUpdate {
 public:
  /// A step hears of the one that is so many steps back: not of the one before, which the GPU may still work on.
  static constexpr int kDelay = 2;
  /// What one step is scaled by.
  struct Scaling {
    double divisor = 1;
    double max_norm = 0;      ///< 0: not clipped
    double norm_divisor = 1;  ///< of the gradients whose squares StepsUnderWay has
    /// By which the device changes the loss scale; none: losses are not scaled, or by what is in `divisor`.
    std::optional<LossScaleRules> loss_scale = {};
  };
  /// A step that the host has heard of.
  struct Heard {
    int64_t job_step = 0;
    device::StepOutcome outcome;
    std::vector<bool> used;  ///< [parameter] that it stepped
  };

  /// Both outlive this.
  DeviceUpdate(ShardedModel& model, comm::Communicator& gradient_stream);

  StepsUnderWay& under_way() { return under_way_; }

  /// Outcomes of steps that are over by now; `all`: of every one, for which the host waits.
  std::vector<Heard> hear(bool all);
  /// Whether steps are open in which other parameters had gradients: their outcome must be heard before `begin`, because the device counts
  /// skipped steps alone.
  bool has_open_with_others(const std::vector<bool>& used) const;

  /// Rows, options or memory have changed: tables are made anew. The parts are in the order of buckets, which are their groups.
  void set_parts(std::vector<DevicePart> parts);
  /// Starts a step: `t[parameter]` is its count in this step, `options[group]` what it is stepped with.
  void begin(const std::vector<bool>& used, const std::vector<int64_t>& t,
             const std::vector<Options>& options, const Scaling& scaling);
  /// `gradients`: of its parts.
  void update_bucket(int bucket, const std::vector<device::Gradient>& gradients);
  void finish_bucket(int bucket);
  void absorb(bool with_squares);
  void prepare();

 private:
  struct Open {
    int64_t job_step;
    std::vector<bool> used;
  };
  void agree(bool is_alone);

  ShardedModel& model_;
  comm::Communicator& gradient_stream_;
  DeviceApi& api_;
  StepsUnderWay under_way_;
  std::unique_ptr<DeviceStep> step_;
  std::vector<int> group_of_;    ///< [part] of the options
  std::vector<int> first_part_;  ///< [bucket]
  std::deque<Open> open_;
};

}  // namespace fusedbun

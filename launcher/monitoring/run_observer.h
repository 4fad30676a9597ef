#pragma once
// RunObserver: an object that is told, on rank 0, of each step and each validation of a run: a file, an HTTP endpoint. What one of them cannot
// do (a full disk) costs the run nothing.
//
// Thread safety: the training thread calls.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fusedbun::monitoring {

/// Of one param group.
struct GroupRate {
  std::string group;
  double lr = 0;  ///< as used
};

struct StepMetrics {
  int64_t step = 0;  ///< job step, from 0
  double loss = 0;   ///< mean over the global batch, nats per token
  double lr = 0;     ///< as used
  double tokens_per_second = 0;
  double grad_norm = 0;  ///< before clipping; 0: not clipping
  int64_t revision = 0;  ///< of the hyperparameters in use
  int64_t skipped = 0;   ///< steps skipped so far
  /// With a dynamic loss scale.
  struct Scale {
    double used = 1;         ///< the step's loss was multiplied by it
    int64_t good_steps = 0;  ///< after that step, since the scale changed last
  };
  std::optional<Scale> loss_scale = {};
  int64_t tokens = 0;  ///< of the global batch
  double seconds = 0;  ///< the step as a whole, on rank 0
  std::vector<GroupRate> group_rates = {};
  /// Changes of hyperparameters that this step was the first to use: "revision 3: learning_rate = 0.001".
  std::vector<std::string> changes = {};
};

class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void step_done(const StepMetrics& metrics) = 0;
  /// The loss before job step `step`, nats per token.
  virtual void validated(int64_t step, double loss) = 0;
};

}  // namespace fusedbun::monitoring

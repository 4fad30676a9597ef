#pragma once
// metrics.jsonl of a run folder: one JSON object per line, for programs. Two kinds of lines:
//   {"attempt":1,"step":0,"loss":5.45,"lr":1e-4,"tokens_per_second":13000.0,"grad_norm":1.9,"revision":0,"skipped":0}
//   {"attempt":1,"step":50,"validation_loss":3.21}      loss before job step 50, in nats per token
// With a dynamic loss scale (--precision fp16-autocast) the first kind goes on: ,"loss_scale":65536.0,"good_steps":17
// On GPUs grad_norm, skipped and the loss scale are those of the step two before, which the host has heard of.
// Attempts of a run count from 1. One that resumes tells of its steps again, and nothing is rewritten: of two lines about a step
// that of the highest attempt holds. A number that is NaN or inf is null. Each line is there at once, so a reader never waits for the end of the run; lines that
// a full disk does not take are lost and counted (line_file.h).
//
// Thread safety: none.
#include <cstdint>
#include <filesystem>
#include <string>

#include "fusedbun/dist/run_folder/line_file.h"
#include "fusedbun/launcher/monitoring/run_observer.h"

namespace fusedbun::train {

class MetricsFile final : public monitoring::RunObserver {
 public:
  /// Appends to `path`; `notice` is told when lines are lost.
  MetricsFile(std::filesystem::path path, int64_t attempt, run_folder::LineFile::Notice notice);
  void step_done(const monitoring::StepMetrics& metrics) override;
  void validated(int64_t step, double loss) override;
  /// "runs/a/metrics.jsonl", and how many lines it lacks.
  std::string description() const;
  /// Job steps told of so far.
  int64_t steps() const { return steps_; }

 private:
  run_folder::LineFile lines_;
  int64_t attempt_;
  int64_t steps_ = 0;
};

}  // namespace fusedbun::train

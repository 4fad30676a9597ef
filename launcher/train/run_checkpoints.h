#pragma once
// RunCheckpoints: saves a run's checkpoints when they are due, and the last one when the run is asked to leave.
//
// Thread safety: none; the training thread of each rank. All ranks call the same.
#include <chrono>
#include <cstdint>

#include "fusedbun/launcher/train/checkpoint_schedule.h"
#include "fusedbun/launcher/train/run_values.h"
#include "fusedbun/launcher/train/stepper.h"

namespace fusedbun::train {

class RunCheckpoints {
 public:
  /// `first_step` is where this attempt begins. The stepper and the job outlive it.
  RunCheckpoints(Stepper& stepper, Job& job, const CheckpointEvery& every, RunValues values,
                 int64_t batch, int64_t first_step);

  void set_first_validation_loss(double loss) { first_validation_loss_ = loss; }
  void set_validations(const ValidationHistory& history) { validations_ = history; }
  /// Its state is saved too; it outlives this object.
  /// By this rank's clock; rank 0's counts.
  bool is_time() const { return schedule_.is_time(seconds()); }
  /// As after_step() was told last.
  int64_t steps_done() const { return steps_done_; }
  /// Saves if it is due and no other save is under way; training goes on meanwhile. Collective, all ranks with rank 0's `time`.
  void after_step(int64_t steps_done, bool time);
  /// Somebody asked for one: saves unless another save is under way, which who asked is told. Collective.
  void save_requested(int64_t steps_done);
  /// Saves unless that step is saved, after the save that is under way. Collective.
  void before_leaving(int64_t steps_done);

 private:
  using Clock = std::chrono::steady_clock;
  double seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }
  bool save(int64_t steps_done);

  Stepper& stepper_;
  Job& job_;
  CheckpointSchedule schedule_;
  RunValues values_;
  int64_t batch_;
  int64_t steps_done_;
  double first_validation_loss_ = 0;
  ValidationHistory validations_;
  Clock::time_point started_ = Clock::now();
};

}  // namespace fusedbun::train

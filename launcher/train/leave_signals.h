#pragma once
// LeaveSignals: while one lives, the first SIGTERM, SIGINT or SIGUSR1 asks the job to leave after a step that all ranks
// agree on, and the second one ends the process at once with 128 + its number.
//
// Invariant: at most one object at a time.
//
// Thread safety: made and destroyed by the training thread; signals may arrive on any.
#include <csignal>

#include "fusedbun/launcher/train/stepper.h"

namespace fusedbun::train {

class LeaveSignals {
 public:
  explicit LeaveSignals(Stepper& stepper);
  ~LeaveSignals();
  LeaveSignals(const LeaveSignals&) = delete;

 private:
  struct sigaction before_[3];
};

}  // namespace fusedbun::train

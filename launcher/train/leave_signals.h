#pragma once
// LeaveSignals: from its construction on, the first SIGTERM, SIGINT, SIGHUP or SIGUSR1 asks the job to leave after a step
// that all ranks agree on. One that comes a second or more after the first ends the process at once with 128 + its number,
// without the model. What comes sooner is the same request: a signal to a whole process tree reaches a rank twice, from
// the sender and from its launcher. So is, however late, the first signal that its launcher sends after one from elsewhere:
// mpirun waits before it passes SIGTERM on.
//
// Invariants: 1. At most one object in the life of a process. 2. A signal that the process was started to ignore (nohup)
// stays ignored. 3. The handlers outlive the object: the echo of the signal that ended the training must not kill a
// process that is about to report success.
//
// Thread safety: made and destroyed by the training thread; signals may arrive on any.
#include "fusedbun/launcher/train/stepper.h"

namespace fusedbun::train {

class LeaveSignals {
 public:
  /// `tells`: whether the first signal is answered with a sentence on standard error; one rank of a job is enough.
  LeaveSignals(Stepper& stepper, bool tells);
  ~LeaveSignals();
  LeaveSignals(const LeaveSignals&) = delete;
};

}  // namespace fusedbun::train

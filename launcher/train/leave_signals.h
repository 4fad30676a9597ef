#pragma once
// LeaveSignals: from its construction on SIGTERM, SIGINT, SIGHUP and SIGUSR1 end the process with 75: while it still starts nothing can
// be lost. From keep() on, before the run is on record, the first of them is kept for the Serving, while which lives it asks the job to
// leave after a step that all ranks agree on. One that comes a second or more after the first ends the process at once with 128 + its number,
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
  explicit LeaveSignals(bool tells);
  ~LeaveSignals();
  /// The process no longer ends by itself: what it writes from here on wants an end of its own.
  void keep();
  /// Until its end the stepper is asked, at once if a signal was kept; then signals do nothing.
  class Serving {
   public:
    explicit Serving(Stepper& stepper);
    ~Serving();
    Serving(const Serving&) = delete;
  };
  LeaveSignals(const LeaveSignals&) = delete;
};

}  // namespace fusedbun::train

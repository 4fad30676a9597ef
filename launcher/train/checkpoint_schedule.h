#pragma once
// When a run saves a checkpoint: every so many steps, or so much time.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <string>
#include <string_view>

namespace fusedbun::train {

/// At most one of them is not 0; both 0: only when the job is asked to leave.
struct CheckpointEvery {
  int64_t steps = 0;
  double seconds = 0;
};

/// "500" (steps), "90s", "10m", "1.5h", "0". Throws ConfigError that names --checkpoint-every.
CheckpointEvery parse_checkpoint_every(std::string_view text);

/// One that comes due stays so until it is saved.
class CheckpointSchedule {
 public:
  CheckpointSchedule(const CheckpointEvery& every, int64_t first_step)
      : every_(every), newest_(first_step) {}

  /// By rank 0's clock. `seconds` since the run began; every rank is told the answer.
  bool is_time(double seconds) const {
    return every_.seconds > 0 && seconds - saved_at_ >= every_.seconds;
  }
  /// `steps_done` steps are done, and rank 0 says that it is time.
  bool is_due(int64_t steps_done, bool time) const {
    const bool by_steps = every_.steps > 0 && steps_done / every_.steps > newest_ / every_.steps;
    return (by_steps || time) && steps_done > newest_;
  }
  void saved(int64_t steps_done, double seconds) {
    newest_ = steps_done;
    saved_at_ = seconds;
  }
  /// Steps done when the newest was saved, or resumed from.
  int64_t newest() const { return newest_; }

 private:
  CheckpointEvery every_;
  int64_t newest_;
  double saved_at_ = 0;
};

}  // namespace fusedbun::train

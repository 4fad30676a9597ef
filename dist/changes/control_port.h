#pragma once
// ControlPort: what the engine (dist/step) asks of, and tells, the control plane of the job, at a step
// boundary. dist/control implements it on rank 0; without a control plane there is none. The engine
// and the service know only this.
//
// Thread safety: called by the training thread; an implementation guards against its own threads.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/changes/change.h"

namespace fusedbun::changes {

enum class LeaveRequest : uint8_t { none, drain, stop };

/// What a finished job step looked like, for people.
struct StepReport {
  int64_t job_step = 0;  ///< the step that just ended, from 0
  int64_t active_revision = 0;
  int64_t skipped_steps = 0;
  /// The step that `skipped` and `gradient_norm` are of: this one; where GPUs decide by themselves an earlier one, or none (-1).
  int64_t outcome_step = -1;
  bool skipped = false;                     ///< it changed nothing, because a rank saw a NaN or inf
  double gradient_norm = 0;                 ///< 0 unless clipping
  std::vector<Options> group_options = {};  ///< as used, lr effective
  std::vector<double> scheduled_lr = {};    ///< [group] before pin and scale
  std::vector<bool> lr_pinned = {};         ///< [group]
  double lr_scale = 1;
  double max_grad_norm = 0;                 ///< 0: off
  LeaveRequest leave = LeaveRequest::none;  ///< all ranks have agreed that it was the last one
};

/// One number of a finished step, from the training loop: "loss".
struct Metric {
  std::string_view name;
  double value = 0;
};

class ControlPort {
 public:
  virtual ~ControlPort() = default;

  /// Newest accepted revision, asked once before the first step: all ranks then take in what is
  /// known from an earlier attempt of the run, or from the job's file.
  virtual int64_t newest_revision() = 0;
  /// The step's header is about to be sent: from here on `current` is job_step + 1. Returns the
  /// newest accepted revision and whether the job shall leave or save. Rank 0 only.
  struct Boundary {
    int64_t newest_revision = 0;
    LeaveRequest leave = LeaveRequest::none;
    bool checkpoint = false;  ///< one is asked for, once
    bool pause = false;       ///< the job shall be held
  };
  virtual Boundary close_step(int64_t job_step) = 0;
  /// Content of the changes (after, up_to], in order of revision.
  virtual std::vector<ChangeEntry> entries(int64_t after, int64_t up_to) = 0;
  virtual void step_finished(const StepReport& report) = 0;

  // A port that never asks for a pause has no need of these.
  /// All ranks are held between two steps. Asked again and again; they stay while the answer has `pause` and no `leave`.
  virtual Boundary held() { return {}; }
  /// They go on, or leave because some rank was asked to.
  virtual void hold_ended(LeaveRequest) {}
};

}  // namespace fusedbun::changes

#pragma once
// StepConsensus: what the ranks of a job decide together, and what they tell one another of it.
//
//   before the first write of a step   agree(): facts that must be equal, flags that any rank may raise
//   with clipping                      global_norm(): the sum of squares of the averaged gradient
//   at the end of a step               close_step(): a header per rank leaves; hyperparameters of the next step take effect
//   in the next step                   finish_previous(): headers are compared (79 if ranks differ), changes that rank 0 accepted
//                                      are broadcast, requests to leave or to pause take effect on all ranks at the same step
//   after a step that ends in a pause  hold(): until rank 0 is told to go on, or any rank to leave
//
// It has a separate communicator, so that a small message never waits behind gradients, and its operations come in one
// order on every rank.
//
// Thread safety: one thread at a time, except request_leave(), which is async-signal-safe.
#include <torch/serialize/archive.h>

#include <atomic>
#include <chrono>
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/plan/agreement.h"
#include "fusedbun/dist/step/program_changes.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"
#include "fusedbun/dist/step/sharded_model.h"
#include "fusedbun/dist/step/step_epilogue.h"

namespace fusedbun {

class StepConsensus {
 public:
  /// `control` is this object's alone; it, the message and the model outlive it.
  StepConsensus(comm::Communicator& control, StepEpilogue& message, ShardedModel& model,
                const ShardedOptions& options)
      : control_(control), message_(message), model_(model), options_(options) {}

  using Events = ProgramChanges::Events;

  struct Outcome {
    plan::Agreement agreement;
    /// One sentence, the same on every rank, if the call cannot be done.
    std::string refusal;
    /// The ranks made different calls, so nothing can follow.
    bool out_of_step = false;
  };
  /// Collective. `problem` is this rank's own reason to stop, empty without one; `events` name what equal.writes and
  /// equal.unfrozen hash.
  Outcome agree(plan::RankFacts facts, const std::string& problem, const Events& events);
  /// The 2-norm of a vector whose ranks hold parts with these sums of squares. Collective.
  double global_norm(double own_sum_of_squares);
  /// The largest `value` of all ranks. Collective.
  int64_t highest(int64_t value);

  /// Takes in what the last step sent; collective. Throws DivergedError.
  void finish_previous();
  /// What a step did, as far as the host knows.
  struct StepOutcome {
    int64_t job_step = -1;
    double norm = 0;  ///< of the averaged gradient; 0 without clipping
    bool skipped = false;
  };
  /// The step is over: its header leaves, the next step's hyperparameters take effect. `outcome` is its own, or the last that GPUs have
  /// told; `scaled_by` are the bits of what scaled the gradients. Returns the digest of the state, equal on all ranks.
  uint64_t close_step(const StepOutcome& outcome, std::span<const uint64_t> scaled_by,
                      const std::vector<int64_t>& step_counts);

  /// After close_step(): rank 0 was asked to hold the job, and nothing else is to be done first (a checkpoint, leaving).
  bool is_to_hold() const { return is_to_hold_; }
  /// Holds all ranks; collective. Signals of life go on, and a request to leave is found within kHoldTick on any rank.
  void hold();
  /// Of all holds so far.
  double held_seconds() const { return held_seconds_; }
  static constexpr std::chrono::milliseconds kHoldTick{100};

  void set_control(changes::ControlPort* port);
  void request_leave(changes::LeaveRequest request) noexcept {
    leave_requested_.store(static_cast<uint8_t>(request));
  }
  void add_groups();

  std::vector<double> effective_lr() const;
  double max_grad_norm() const { return changes_.max_grad_norm().value_or(options_.max_grad_norm); }
  const changes::StepReport& report() const { return report_; }
  changes::LeaveRequest leave_request() const { return leaving_; }
  bool checkpoint_requested() const { return checkpoint_requested_; }
  int64_t skipped_steps() const { return skipped_steps_; }
  /// A GPU told that it skipped a step.
  void count_skipped() { ++skipped_steps_; }
  bool has_control() const { return has_control_; }  ///< set_control was called

  /// What changes have set and will set.
  changes::ActiveChanges::Saved saved_changes() const { return changes_.saved(); }
  void restore(int64_t job_step, int64_t skipped_steps,
               const changes::ActiveChanges::Saved& changes);

  /// Step counters and the changes in force (pins, scale, clip limit).
  void save(torch::serialize::OutputArchive& archive) const;
  void load(torch::serialize::InputArchive& archive);

 private:
  std::string refusal_of(const plan::RankFacts& facts, const std::string& problem,
                         const Events& events, bool& out_of_step);
  /// Brings rank 0's changes up to that revision here; collective. Returns whether there were any.
  bool accept_changes(int64_t newest_revision);
  uint64_t state_digest(std::span<const uint64_t> scaled_by,
                        const std::vector<int64_t>& step_counts) const;
  void make_report(const StepOutcome& outcome);
  void enter_next_step();

  comm::Communicator& control_;
  StepEpilogue& message_;
  ShardedModel& model_;
  const ShardedOptions& options_;
  changes::ControlPort* port_ = nullptr;
  changes::ActiveChanges changes_;
  changes::StepReport report_;
  changes::LeaveRequest leaving_ = changes::LeaveRequest::none;
  std::atomic<uint8_t> leave_requested_{0};
  bool asked_for_checkpoint_ = false;  ///< by the last header that was read
  bool checkpoint_requested_ = false;  ///< after the last step
  bool asked_to_pause_ = false;        ///< by the last header that was read
  bool is_to_hold_ = false;
  double held_seconds_ = 0;
  int64_t skipped_steps_ = 0;
  bool has_control_ = false;
};

}  // namespace fusedbun

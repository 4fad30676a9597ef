#pragma once
// LossScale: by how much the loss is multiplied before backward, so that gradients in float16 neither overflow nor vanish; the optimizer
// divides it out. The rule is torch.amp.GradScaler's (dynamic loss scaling: Micikevicius et al., 2018): multiplied by `growth` after
// `growth_interval` good steps at one scale, by `backoff` after a step that was skipped because a gradient was not finite.
//
// It is told what became of each step, maybe late: with `delay` = d, the outcome of step s has its effect on the scale of step
// s + 1 + d, whenever it is told, neither sooner nor later. So the scale of a step is a function of the outcomes alone, and a run
// that is stopped and goes on has the scales of one that was not. d = 0 is GradScaler. With d > 0, up to d steps after an overflow
// were begun with the scale that overflowed. What they add:
//   - they are skipped too, as a rule; that says nothing new, so the scale falls once for all of them;
//   - a good step counts towards growth only if it used the scale that holds when its outcome has its effect: of the steps around
//     a change, those that were begun with the old scale do not count, so up to d more steps pass between two rises.
//
// Invariants: 1. Outcomes are told in the order of steps, each once. 2. minimum <= scale <= what float32 can hold.
//
// Thread safety: none. The same calls give the same scales, so all ranks have one if they agree on what is skipped.
#include <cstdint>
#include <deque>
#include <vector>

namespace fusedbun::train {

struct LossScaleRules {
  double initial = 65536;  ///< these four are GradScaler's defaults
  double growth = 2;
  double backoff = 0.5;
  int64_t growth_interval = 2000;
  /// Below it gradients that are good in float32 are good in float16 as well: DeepSpeed and Megatron-LM stop falling here too.
  double minimum = 1;
  /// After that many skipped steps in a row training has failed. From 65536 sixteen take the scale to the minimum, and four more are
  /// skipped there; DeepSpeed gives up at the first one there, fairseq after twenty from its initial scale.
  int64_t skipped_in_a_row_max = 20;
  int delay = 0;  ///< steps by which outcomes are late
};

/// What a checkpoint keeps between two steps.
struct LossScaleState {
  double scale = 0;
  int64_t good_steps = 0;        ///< at this scale, since it changed last
  int64_t skipped_in_a_row = 0;  ///< steps
  /// With a delay: outcomes that have not had their effect, oldest first.
  struct Told {
    double scale = 0;  ///< that the step used
    bool skipped = false;
    bool operator==(const Told&) const = default;
  };
  std::vector<Told> told = {};
  bool operator==(const LossScaleState&) const = default;
};

class LossScale {
 public:
  /// The next step is `first_step`.
  explicit LossScale(const LossScaleRules& rules, int64_t first_step = 0);
  /// Goes on from `saved`, which was taken before `first_step`.
  LossScale(const LossScaleRules& rules, int64_t first_step, const LossScaleState& saved);

  /// The scale of the next step, which begins. The outcomes of all steps before it but the last `delay` have been told.
  double begin_step();
  /// What became of the oldest step that has begun and was not told of.
  void tell(bool skipped);

  double scale() const { return state_.scale; }  ///< of the next step, by what has had its effect
  int64_t good_steps() const { return state_.good_steps; }
  int64_t skipped_in_a_row() const { return state_.skipped_in_a_row; }
  bool is_at_minimum() const { return state_.scale <= rules_.minimum; }
  /// Nothing better is to be expected.
  bool has_failed() const { return state_.skipped_in_a_row >= rules_.skipped_in_a_row_max; }
  const LossScaleRules& rules() const { return rules_; }
  /// Between two steps, when all that have begun have been told of.
  LossScaleState state() const;

 private:
  void apply_due();
  void apply(const LossScaleState::Told& outcome);

  LossScaleRules rules_;
  LossScaleState state_;           ///< `told` is used for the steps from first_open_ on
  int64_t next_step_;              ///< begins next
  int64_t first_open_;             ///< the oldest step whose outcome has not had its effect
  std::deque<double> begun_ = {};  ///< scales of the steps that have begun and were not told of
};

}  // namespace fusedbun::train

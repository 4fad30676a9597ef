#pragma once
// Agreement: the small message that every rank sends before the first write of a step, and what follows from all of them
// together. The messages are combined with bitwise or, so one all-reduce answers two kinds of question:
//   did any rank ...?            a flag, or one bit per parameter or bucket
//   are all ranks equal in x?    x and its complement travel: a bit is set in both exactly where two ranks differ
//
// The norm for clipping is a sum and travels apart, after the gradients that it is made of have been agreed on.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace fusedbun::plan {

/// The collective calls of the optimizer. All ranks must make the same one.
enum class OptimizerCall : uint64_t {
  step = 1,
  finish = 2,
  add_group = 3,
  write_parameters = 4,
  backward = 5,  ///< with step_in_backward, where it waits for the others' gradients
  save = 6,
  load = 7,
};

/// "finish()"
std::string_view name_of(OptimizerCall call);

/// What must be the same on every rank, because it decides which collectives follow or scales the update.
struct EqualFacts {
  OptimizerCall call = OptimizerCall::step;
  int64_t job_step = 0;
  int64_t passes = 1;  ///< backward passes whose gradients stand in p.grad; 0: a divisor was given
  double divisor = 1;  ///< without the loss scale
  double loss_scale = 1;
  double max_grad_norm = 0;
  uint64_t writes =
      0;  ///< hash of what the program wrote into parameters since the last step; 0: nothing
  uint64_t unfrozen = 0;  ///< hash of the parameters that require gradients since; 0: none
};

/// What one rank brings.
struct RankFacts {
  EqualFacts equal;
  bool nonfinite = false;   ///< it saw a NaN or inf (in g·g)
  bool refuses = false;     ///< it has an error to tell all ranks, so that they stop together
  std::vector<bool> used;   ///< [parameter] has a gradient here
  std::vector<bool> dirty;  ///< [bucket] its gradients changed after they were sent
};

/// What all ranks know after the exchange.
struct Agreement {
  bool is_equal = true;    ///< no EqualFacts differ; if not, disagreement() names the ranks
  bool nonfinite = false;  ///< some rank saw one
  bool refused = false;    ///< some rank refuses
  std::vector<bool> used;
  std::vector<bool> dirty;
};

std::vector<int64_t> agreement_message(const RankFacts& facts);
/// Reads the messages of all ranks, combined with bitwise or.
Agreement read_agreement(std::span<const int64_t> combined, size_t parameters, size_t buckets);

/// One sentence naming the ranks and the first fact that differs ("rank 1 called finish() after 9 steps where rank 0 called
/// step()"), or nothing. Facts that only hash (writes, unfrozen) are left to the caller, who knows the names.
std::optional<std::string> disagreement(std::span<const EqualFacts> ranks);

/// min(1, max_grad_norm / norm), the factor of every gradient; 1 for a norm of NaN, 0 for inf. `max_grad_norm` 0: 1.
double clip_factor(double norm, double max_grad_norm);

}  // namespace fusedbun::plan

#pragma once
// When validation says that a run learns nothing more, and which validation was the best.
//
// A validation counts as better if its loss is below the reference by more than min_delta; then it is the new reference. So many small
// gains count together, as in Keras and PyTorch Lightning. All ranks see the same losses, and decide the same.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <optional>

namespace fusedbun::train {

struct EarlyStopping {
  int64_t patience = 0;  ///< validations in a row without a better one that end the run; 0: off
  double min_delta = 0;  ///< at least 0
};

/// Throws ConfigError "--flag = value: ...". `eval_every` as TrainOptions has it.
void validate(const EarlyStopping& rule, int64_t eval_every);

/// The validation with the lowest loss, the first of equal ones.
struct BestValidation {
  int64_t job_step = 0;  ///< steps done before it
  double loss = 0;
  bool operator==(const BestValidation&) const = default;
};

/// What a run knows of its validations; goes through checkpoints, so that a resumed run stops at the same step.
struct ValidationHistory {
  std::optional<BestValidation> best = {};
  std::optional<double> reference = {};
  int64_t without_better = 0;  ///< in a row
  bool operator==(const ValidationHistory&) const = default;
};

/// The history after one more validation. A loss that is no number is not better than any.
ValidationHistory after_validation(ValidationHistory history, const EarlyStopping& rule,
                                   int64_t job_step, double loss);

inline bool is_time_to_stop(const ValidationHistory& history, const EarlyStopping& rule) {
  return rule.patience > 0 && history.without_better >= rule.patience;
}

}  // namespace fusedbun::train

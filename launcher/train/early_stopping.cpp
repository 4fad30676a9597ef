#include "fusedbun/launcher/train/early_stopping.h"

#include <cmath>
#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun::train {

void validate(const EarlyStopping& rule, int64_t eval_every) {
  FUSEDBUN_REQUIRE(rule.patience >= 0, ConfigError,
                   "--early-stop = " + std::to_string(rule.patience) + ": must be at least 0");
  FUSEDBUN_REQUIRE(
      std::isfinite(rule.min_delta) && rule.min_delta >= 0, ConfigError,
      "--early-stop-delta = " + std::to_string(rule.min_delta) + ": must be finite, >= 0");
  FUSEDBUN_REQUIRE(rule.min_delta == 0 || rule.patience > 0, ConfigError,
                   "--early-stop-delta is for --early-stop: add it, or leave the delta out");
  FUSEDBUN_REQUIRE(rule.patience == 0 || eval_every > 0, ConfigError,
                   "--early-stop needs validations on the way: --eval-every above 0");
}

ValidationHistory after_validation(ValidationHistory history, const EarlyStopping& rule,
                                   int64_t job_step, double loss) {
  if (std::isnan(loss)) {
    ++history.without_better;
    return history;
  }
  if (!history.best || loss < history.best->loss) history.best = {job_step, loss};
  if (!history.reference || loss < *history.reference - rule.min_delta) {
    history.reference = loss;
    history.without_better = 0;
  } else {
    ++history.without_better;
  }
  return history;
}

}  // namespace fusedbun::train

#pragma once
// The dumb second implementation: one process plays all ranks in plain loops and says what every step must give. It shares
// nothing with dist/step. Accumulation, sums in rank order, divisor, used set, skip, clip and changes are written here; the
// update of a whole matrix is core's one-process Fusedbun.
//
// Thread safety: a pure function.
#include <ATen/ATen.h>

#include <vector>

#include "fusedbun/tests/dist/step/layout_fuzz_case.h"

namespace fusedbun::testing {

/// After one step, on every rank.
struct ExpectedStep {
  bool refused = false;  ///< with a ConfigError on all ranks; nothing has changed
  bool skipped = false;
  std::vector<at::Tensor> values;  ///< [parameter]
  /// [parameter] how far the sharded values may be from these, relative to the largest; 0: the same bits.
  std::vector<double> tolerance;
};

std::vector<ExpectedStep> run_alone(const FuzzCase& fuzz_case);

}  // namespace fusedbun::testing

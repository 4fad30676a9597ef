#pragma once
// Agreement: the one small message that ranks add up before the first write of a step, and what
// follows from the sum.
//
// Layout, float64: [0] ranks that saw a non-finite gradient, [1] sum of squares of the averaged
// gradient (0 unless clipping), [2 + p] ranks on which parameter p had a gradient. Counts are exact
// in float64, so SUM is exact for them.
//
// Thread safety: values.
#include <cstdint>
#include <span>
#include <vector>

namespace fusedbun::plan {

struct Agreement {
  bool nonfinite = false;     ///< some rank saw a NaN or inf (in g·g)
  double gradient_norm = 0;   ///< global 2-norm of the averaged gradient; 0 unless clipping
  double gradient_scale = 1;  ///< min(1, max_grad_norm / norm); 1 for a norm of NaN, 0 for inf
  std::vector<bool> used;     ///< [parameter] had a gradient on some rank
};

std::vector<double> agreement_message(bool nonfinite, double sum_of_squares,
                                      const std::vector<bool>& used);
/// Reads the summed message. `max_grad_norm` 0 means no clipping.
Agreement read_agreement(std::span<const double> message, double max_grad_norm);

}  // namespace fusedbun::plan

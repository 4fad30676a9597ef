#pragma once
// How much dropout a model is trained with (Srivastava et al., 2014): probabilities, and where they act.
//
// Thread safety: values and pure functions.
#include <string>

namespace fusedbun::model {

/// Probabilities, each at least 0 and below 1, with which single values are set to 0 in training; the others are divided by 1 - p.
struct DropoutRates {
  double embeddings = 0;  ///< of what enters the first block
  double attention = 0;   ///< of the weights with which a position sees others
  double residuals = 0;   ///< of what attention and MLP add to the residual stream

  bool operator==(const DropoutRates&) const = default;
  bool is_none() const { return *this == DropoutRates(); }
};

/// "embeddings 0.1, attention 0.1", what is 0 left out; "none".
std::string describe(const DropoutRates& rates);

}  // namespace fusedbun::model

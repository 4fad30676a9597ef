#pragma once
// The numbers of a fuzz case: start values and gradients, each from its own key, so that they stay when a case shrinks.
//
// Thread safety: pure functions.
#include <ATen/ATen.h>

#include <vector>

#include "fusedbun/core/segment_step.h"
#include "fusedbun/tests/dist/step/layout_fuzz_case.h"

namespace fusedbun::testing {

/// The nearest number of the type.
double rounded_to(ElementType type, double value);
int64_t element_count(const FuzzParameter& parameter);

/// What numbers stand for; with the seed, the rank and the parameter's id it gives them.
enum class Purpose { start, gradient, tied_gradient, set_gradient, written };
/// Elements in row-major order, all numbers of the parameter's type: of many magnitudes, some 0, some below eps.
std::vector<double> values(const FuzzCase& fuzz_case, const FuzzParameter& parameter, int rank,
                           Purpose purpose, int64_t key);

/// A tensor of the parameter's shape and type with these elements.
at::Tensor tensor_of(const FuzzParameter& parameter, const std::vector<double>& elements);
/// The same values laid out as the parameter wants; a leaf that requires a gradient unless it is frozen.
at::Tensor parameter_of(const FuzzCase& fuzz_case, const FuzzParameter& parameter, int rank);

/// Names the numbers of one action.
inline int64_t key_of(size_t step, size_t action) {
  return static_cast<int64_t>(step * 1000 + action);
}

}  // namespace fusedbun::testing

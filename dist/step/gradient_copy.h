#pragma once
// Copies a gradient into bucket memory and says, while it is hot in cache, whether all of it is
// finite.
//
// The test is on g·g in the gradient's type, which overflows before g does: a gradient whose square
// is inf would spoil the second moment although g itself is a number.
//
// Thread safety: distinct destinations may be written at the same time.
#include <cstdint>

namespace fusedbun {

/// Copies `count` elements; returns true if every g·g is finite. The ranges do not overlap.
bool copy_and_test(const float* source, float* destination, int64_t count);
bool copy_and_test(const double* source, double* destination, int64_t count);
/// The same into bfloat16, rounded to nearest even; NaN becomes the quiet one. The test is of the float32 values.
bool copy_and_test(const float* source, uint16_t* destination, int64_t count);

}  // namespace fusedbun

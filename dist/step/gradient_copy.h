#pragma once
// Says of a gradient, while it is hot in cache, whether all of it is finite; with or without copying it.
//
// The test is on g·g in the gradient's type, which overflows before g does: a gradient whose square
// is inf would spoil the second moment although g itself is a number.
//
// Thread safety: distinct destinations may be written at the same time.
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fusedbun {

/// Copies `count` elements; returns true if every g·g is finite. The ranges do not overlap.
bool copy_and_test(const float* source, float* destination, int64_t count);
bool copy_and_test(const double* source, double* destination, int64_t count);
/// The same into bfloat16, rounded to nearest even; NaN becomes the quiet one. The test is of the float32 values.
bool copy_and_test(const float* source, uint16_t* destination, int64_t count);

/// The same of contiguous tensors on CPUs: float32 or float64 into their type, or float32 into bfloat16.
bool copy_and_test(const at::Tensor& source, const at::Tensor& destination);
/// Returns true if every g·g of a contiguous float32 or float64 tensor on CPUs is finite.
bool squares_are_finite(const at::Tensor& gradient);

}  // namespace fusedbun

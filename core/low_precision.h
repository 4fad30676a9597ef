#pragma once
// Bfloat16 parameters as float32 and back (LowPrecision), in LibTorch's operations, for the reference step; the fused passes do the same
// while they hold the values. Any device.
//
// Thread safety: distinct tensors at the same time.
#include <torch/types.h>

#include <cstdint>

namespace fusedbun {

/// The float32 values whose upper halves, half units rounded up, are `parameter` and whose lower halves are `remainder` (bfloat16 and
/// int16, of one shape). A zero with a remainder of half a unit or more was written by the program, and is zero.
torch::Tensor with_remainder(const torch::Tensor& parameter, const torch::Tensor& remainder);

/// And back. NaN becomes the quiet one.
void put_with_remainder(const torch::Tensor& values, torch::Tensor& parameter,
                        torch::Tensor& remainder);

/// Rounds float32 `values` stochastically into `parameter` (stochastic_rounding.h). `first_element`: of the whole parameter, the one that
/// values[0] is.
void round_stochastically(const torch::Tensor& values, uint32_t seed, int64_t first_element,
                          torch::Tensor& parameter);

}  // namespace fusedbun

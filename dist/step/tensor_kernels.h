#pragma once
// core's gradient kernels (gradient_kernels.h) on contiguous tensors in host memory.
//
// Thread safety: calls that write distinct tensors may run at the same time.
#include <ATen/core/Tensor.h>

#include <vector>

namespace fusedbun {

/// Copies `from` into `to`, of the same size, and returns whether every g·g is finite. Their types: those of copy_and_test in core.
bool copy_and_test(const at::Tensor& from, const at::Tensor& to);
bool squares_are_finite(const at::Tensor& gradient);

/// Float32 rows that were stepped elsewhere: their change, rounded to bfloat16, goes into `update` and is added to `rows`. Of one size.
/// Runs on LibTorch's threads, as apply_update.
void round_update(const at::Tensor& stepped, const at::Tensor& rows, const at::Tensor& update);
/// Adds a rounded update of another rank to this rank's copy of its rows.
void apply_update(const at::Tensor& update, const at::Tensor& rows);

/// sum = parts[0] + parts[1] + ... in that order and in the type of `sum`, float32 or float64; it may share memory with one of them. All
/// parts are of one type. Runs on LibTorch's threads. Returns the sum of squares of the sum.
double add_up(const std::vector<at::Tensor>& parts, const at::Tensor& sum);

}  // namespace fusedbun

#pragma once
// The fused step on NVIDIA GPUs: launches over a table of matrices, on a stream of the caller's. Nothing waits for the GPU. No torch.
//
// One step of a table:
//   absorb         the last step's column totals become part of `col`; once per step, or whenever `col` is to be read
//   prepare        what a pass needs of the columns: c_j / mean(c), or the denominators
//   begin          one pass over the rows: the update, or with denominator = global the statistics
//   collect        partial sums become row statistics, column totals and sums of squares
//   ...            where other ranks hold rows of a matrix, its totals are reduced here (denominator = global) or any time before `absorb`
//   finish         denominator = global: after absorb and prepare, the update
//
// Invariants: 1. Every operation is IEEE's, rounded to nearest, never contracted, and sums are added as sum_order.h says: for the
// same gradients the results are the CPU's to the bit, on every GPU, in every run. 2. The gradient is only read. 3. Where
// control->skip is set, nothing changes.
//
// Bytes that `begin` moves per parameter, float32: recommended and sm3 20 (g, m, p read; m, p written), compact 12, and 4 more where
// rows are centred; partial sums add 16 per column and band, a fortieth of that.
//
// Errors: DeviceError with CUDA's text when a launch is refused. Thread safety: distinct tables may be stepped at the same time.
#include "fusedbun/core/gpu/cuda_namespace.h"
#include "fusedbun/core/gpu/cuda_stream.h"
#include "fusedbun/core/gpu/step_table.h"

namespace fusedbun::FUSEDBUN_CUDA {

/// `with_squares`: what measures the parameters is complete too, on all ranks.
template <class T>
void absorb(const device::StepTable<T>& table, bool with_squares, CudaStream stream);
template <class T>
void prepare(const device::StepTable<T>& table, CudaStream stream);
/// `centred`: some segments are.
template <class T>
void begin(const device::StepTable<T>& table, bool centred, CudaStream stream);
template <class T>
void collect(const device::StepTable<T>& table, CudaStream stream);
template <class T>
void finish(const device::StepTable<T>& table, bool centred, CudaStream stream);
/// new_squares := the sums of squares of the parameters as they are; takes the place of begin and collect.
template <class T>
void measure(const device::StepTable<T>& table, CudaStream stream);

}  // namespace fusedbun::FUSEDBUN_CUDA

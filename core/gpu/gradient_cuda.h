#pragma once
// What a GPU does around the step: moves gradients and rows into and out of buckets, tests gradients, adds up squares, decides. Nothing
// waits for the GPU. No torch.
//
// Invariant: sums are added in an order that the length alone decides, so every run and every GPU gives the same bits.
//
// Errors: DeviceError with CUDA's text when a launch is refused. Thread safety: distinct tables at the same time.
#include "fusedbun/core/gpu/cuda_namespace.h"
#include "fusedbun/core/gpu/cuda_stream.h"
#include "fusedbun/core/gpu/gradient_table.h"

namespace fusedbun::FUSEDBUN_CUDA {

/// Moves all pieces in one launch; reads and writes each element once.
void move(const device::MoveTable& table, CudaStream stream);
/// Adds the squares of all pieces, where they come from, to `sum`. `partials`: [tile_count] scratch.
void add_squares(const device::MoveTable& table, double* partials, double* sum, CudaStream stream);
/// agreed := this rank's part: `squares` and, from control, nonfinite; both are 0 afterwards.
void offer(double* squares, device::StepControl* control, device::Agreed* agreed,
           CudaStream stream);
/// Makes of what the ranks have added up the step's divisor, clip and skip, of these the next step's loss scale, and the outcome of all.
void decide(const device::Agreed* agreed, const device::StepInputs* inputs,
            device::StepControl* control, device::StepOutcome* outcome, CudaStream stream);

}  // namespace fusedbun::FUSEDBUN_CUDA

#pragma once
// LibTorch's CUDA half. Programs link the CPU half alone, so that they start fast and run where there is no CUDA; this loads the other.
//
// LibTorch asks once whether it has a CUDA half, at the first question about GPUs, and keeps the answer: torch::manual_seed is such a
// question. So that a program may seed before it makes its Job, the first question itself loads the CUDA half, on machines with an NVIDIA
// driver; elsewhere nothing is loaded. Nothing has to be called for that: a program that links this library has it.
//
// Thread safety: call from one thread.
namespace fusedbun {

/// Loads libtorch_cuda and returns how many GPUs this process can see; 0 without a driver. Throws DeviceError if the
/// installed LibTorch has no CUDA half, or if LibTorch has decided before that it has none.
int load_gpu_support();

}  // namespace fusedbun

#pragma once
// LibTorch's CUDA half, loaded when a job asks for a GPU: programs link the CPU half alone, so that they start fast and run
// where there is no CUDA.
//
// Thread safety: call from one thread.
namespace fusedbun {

/// Loads libtorch_cuda and returns how many GPUs this process can see; 0 without a driver. Throws DeviceError if the
/// installed LibTorch has no CUDA half.
int load_gpu_support();

}  // namespace fusedbun

#pragma once
// The namespace of the CUDA kernels' launch functions. Tests compile the kernels a second time, for the CPU (tests/cuda_on_cpu), and name
// another, because both may be in one program.
#if !defined(FUSEDBUN_CUDA)
#define FUSEDBUN_CUDA cuda
#endif

#pragma once
// The namespace of the CUDA kernels' launch functions. Tests put a header of this name in front, because they compile the kernels a second
// time, for the CPU (tests/cuda_on_cpu), and both may be in one program.
#define FUSEDBUN_CUDA cuda

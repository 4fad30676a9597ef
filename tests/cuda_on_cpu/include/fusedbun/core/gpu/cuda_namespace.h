#pragma once
// In place of core's header of this name.
#define FUSEDBUN_CUDA cuda_on_cpu

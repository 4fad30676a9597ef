// The fused pass for AVX2 (compile options: core/CMakeLists.txt).
#define FUSEDBUN_VARIANT avx2
#include "fusedbun/core/step_cpu_pass.inc"

// The fused pass for AVX512 (compile options: core/CMakeLists.txt).
#define FUSEDBUN_VARIANT avx512
#include "fusedbun/core/step_cpu_pass.inc"

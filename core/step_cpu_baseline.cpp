// The fused pass for every processor of the architecture (compile options: core/CMakeLists.txt).
#define FUSEDBUN_VARIANT baseline
#include "fusedbun/core/step_cpu_pass.inc"

#include "fusedbun/core/cpu_execution.h"

#include "fusedbun/core/step_cpu_variants.h"

namespace fusedbun {

bool is_supported(InstructionSet set) {
#if FUSEDBUN_X86_VARIANTS
  switch (set) {
    case InstructionSet::baseline:
      return true;
    case InstructionSet::avx2:
      return __builtin_cpu_supports("avx2");
    case InstructionSet::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == InstructionSet::baseline;
}

InstructionSet best_instruction_set() {
  static const InstructionSet best = [] {
    for (auto set : {InstructionSet::avx512, InstructionSet::avx2}) {
      if (is_supported(set)) return set;
    }
    return InstructionSet::baseline;
  }();
  return best;
}

}  // namespace fusedbun

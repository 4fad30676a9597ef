#pragma once
// CpuExecution: which variant of the CPU's kernels runs, and on which threads. Neither changes a bit of a result.
//
// Thread safety: values and pure functions.
#include <cstdint>
#include <functional>

namespace fusedbun {

/// The variants of the kernels; on processors other than x86-64 there is only the baseline.
enum class InstructionSet { baseline, avx2, avx512 };

/// True if this machine can run the variant and the library has it.
bool is_supported(InstructionSet set);
/// The widest supported one.
InstructionSet best_instruction_set();

/// Runs task(0) ... task(count - 1), each once; at the same time or not, on whose threads it likes.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

struct CpuExecution {
  InstructionSet set = best_instruction_set();
  ParallelFor parallel_for = {};  ///< empty: the calling thread does it all
};

}  // namespace fusedbun

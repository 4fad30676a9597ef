#pragma once
// The variants of the CPU's fused pass and of the gradient kernels. Each is step_cpu_pass.inc compiled for one instruction set, in a namespace of
// its own; it includes nothing that could leave code of a wide instruction set behind in a function that other files
// share.
//
// Thread safety: as step_cpu.h.
#include <cstdint>

#include "fusedbun/core/cpu_execution.h"
#include "fusedbun/core/element_type.h"
#include "fusedbun/core/fused_pass.h"

#if defined(__x86_64__)
#define FUSEDBUN_X86_VARIANTS 1
#else
#define FUSEDBUN_X86_VARIANTS 0
#endif

/// Returns what `call` returns in the namespace of one variant.
#if FUSEDBUN_X86_VARIANTS
#define FUSEDBUN_IN_VARIANT(set, call)                                     \
  if (set == InstructionSet::avx512) return ::fusedbun::cpu::avx512::call; \
  if (set == InstructionSet::avx2) return ::fusedbun::cpu::avx2::call;     \
  return ::fusedbun::cpu::baseline::call
#else
#define FUSEDBUN_IN_VARIANT(set, call) return ::fusedbun::cpu::baseline::call
#endif

namespace fusedbun::cpu {

/// parts[0], parts[1], ... parts[count - 1], each from element `begin` on.
struct SummedParts {
  const void* const* parts;
  int count;
  ElementType type;
  int64_t begin;
};

/// What a variant offers.
#define FUSEDBUN_DECLARE_VARIANT(set)                                                           \
  namespace set {                                                                               \
  void run_pass(const fused::PassArguments<float>& arguments);                                  \
  void run_pass(const fused::PassArguments<double>& arguments);                                 \
  bool squares_are_finite(ElementType type, const void* values, int64_t n);                     \
  bool copy_and_test(ElementType source_type, const void* source, ElementType destination_type, \
                     void* destination, int64_t n);                                             \
  void round_update(const float* stepped, float* rows, uint16_t* update, int64_t n);            \
  void apply_update(const uint16_t* update, float* rows, int64_t n);                            \
  double sum_in_order(const SummedParts& parts, float* sum, int64_t n, bool with_squares);      \
  double sum_in_order(const SummedParts& parts, double* sum, int64_t n, bool with_squares);     \
  double sum_of_squares(const float* values, int64_t n);                                        \
  double sum_of_squares(const double* values, int64_t n);                                       \
  }
FUSEDBUN_DECLARE_VARIANT(baseline)
FUSEDBUN_DECLARE_VARIANT(avx2)
FUSEDBUN_DECLARE_VARIANT(avx512)
#undef FUSEDBUN_DECLARE_VARIANT

}  // namespace fusedbun::cpu

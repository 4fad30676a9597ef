#include "fusedbun/core/step_cpu.h"

#include <cmath>
#include <vector>

#include "fusedbun/core/step_cpu_variants.h"

#if defined(__x86_64__)
#define FUSEDBUN_X86_VARIANTS 1
#else
#define FUSEDBUN_X86_VARIANTS 0
#endif

namespace fusedbun {
namespace {

using fused::PassArguments;
using fused::PassKind;

// Returns what `call` returns in the namespace of one variant.
#if FUSEDBUN_X86_VARIANTS
#define FUSEDBUN_IN_VARIANT(set, call)                         \
  if (set == InstructionSet::avx512) return cpu::avx512::call; \
  if (set == InstructionSet::avx2) return cpu::avx2::call;     \
  return cpu::baseline::call
#else
#define FUSEDBUN_IN_VARIANT(set, call) return cpu::baseline::call
#endif

template <class T>
void run_pass(InstructionSet set, const PassArguments<T>& arguments, double* sum_of_squares) {
  FUSEDBUN_IN_VARIANT(set, run_pass(arguments, sum_of_squares));
}

// c_j / mean(c), or 0 before the first step.
template <class T>
std::vector<T> column_shares(const T* col, int64_t columns) {
  double sum = 0;
  for (int64_t j = 0; j < columns; ++j) sum += static_cast<double>(col[j]);
  const double mean = sum / static_cast<double>(columns);
  std::vector<T> shares(columns, T{0});
  if (mean == 0) return shares;
  for (int64_t j = 0; j < columns; ++j)
    shares[j] = static_cast<T>(static_cast<double>(col[j]) / mean);
  return shares;
}

}  // namespace

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

template <class T>
void cpu_begin(const FusedStep<T>& step, double* parameter_sum_of_squares, InstructionSet set) {
  if (step.range.elements() == 0) return;
  PassArguments<T> a = fused::begin_pass(step);
  std::vector<T> shares;
  if (a.kind == PassKind::mean) {
    shares = column_shares(step.col, a.columns);
    a.column_values = shares.data();
  }
  if (a.kind == PassKind::full &&
      !a.centralize) {  // without row means all rows are one: no short ends
    a.columns *= a.rows;
    a.rows = 1;
  }
  run_pass(set, a, parameter_sum_of_squares);
}

template <class T>
void cpu_finish(const FusedStep<T>& step, double* parameter_sum_of_squares, InstructionSet set) {
  if (step.range.elements() == 0) return;
  PassArguments<T> a = fused::finish_pass(step);
  std::vector<T> denominators(a.columns);
  for (int64_t j = 0; j < a.columns; ++j) {
    denominators[j] = std::sqrt(step.col[j] * a.second_moment_scale) + a.eps;
  }
  a.column_values = denominators.data();
  run_pass(set, a, parameter_sum_of_squares);
}

template <class T>
void cpu_absorb_sums(const double* column_sums, const RowRange& range, double beta, T* col) {
  const auto rows = static_cast<double>(range.rows_total);
  for (int64_t j = 0; j < range.columns; ++j) {
    col[j] =
        static_cast<T>(beta * static_cast<double>(col[j]) + (1 - beta) * (column_sums[j] / rows));
  }
}

template <class T>
bool squares_are_finite(const T* values, int64_t count) {
  FUSEDBUN_IN_VARIANT(best_instruction_set(), squares_are_finite(values, count));
}

template <class T>
double sum_of_squares(const T* values, int64_t count) {
  FUSEDBUN_IN_VARIANT(best_instruction_set(), sum_of_squares(values, count));
}

#define FUSEDBUN_INSTANTIATE(T)                                                 \
  template void cpu_begin<T>(const FusedStep<T>&, double*, InstructionSet);     \
  template void cpu_finish<T>(const FusedStep<T>&, double*, InstructionSet);    \
  template void cpu_absorb_sums<T>(const double*, const RowRange&, double, T*); \
  template bool squares_are_finite<T>(const T*, int64_t);                       \
  template double sum_of_squares<T>(const T*, int64_t);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun

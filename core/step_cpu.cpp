#include "fusedbun/core/step_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fusedbun/core/step_cpu_variants.h"

namespace fusedbun {
namespace {

using fused::MomentMemory;
using fused::PassArguments;
using fused::PassKind;

template <class T>
void run_pass(InstructionSet set, PassArguments<T> arguments) {
  if (arguments.kind == PassKind::full && !arguments.centralize &&
      arguments.row_squares ==
          nullptr) {  // nothing depends on rows: one long one has no short ends
    arguments.columns = arguments.elements;
    arguments.rows = 1;
  }
  FUSEDBUN_IN_VARIANT(set, run_pass(arguments));
}

// From this size on, bands are worth other threads: some hundred microseconds each for two of them.
constexpr int64_t kParallelElements = int64_t{1} << 18;

// Column statistics of one second moment in each band, and how they become the matrix's.
template <class T>
class BandColumns {
 public:
  BandColumns(const PassArguments<T>& whole, const MomentMemory<T>& memory, int64_t bands)
      : columns_(whole.columns), memory_(memory) {
    const bool sums = whole.kind == PassKind::mean || whole.kind == PassKind::statistics;
    if (sums) sums_.resize(bands * columns_);
    if (whole.kind == PassKind::sm3) maxima_.resize(bands * columns_);
  }

  void hand_out(int64_t band, MomentMemory<T>& memory) {
    const int64_t offset = band * columns_;
    // Statistics that the pass does not keep are nobody's: bands would copy them over one another.
    memory.column_sums = sums_.empty() ? nullptr : sums_.data() + offset;
    memory.column_maxima = maxima_.empty() ? nullptr : maxima_.data() + offset;
  }

  void collect() const {
    for (size_t at = 0; at < sums_.size(); at += columns_) {
      for (int64_t j = 0; j < columns_; ++j) memory_.column_sums[j] += sums_[at + j];
    }
    for (size_t at = 0; at < maxima_.size(); at += columns_) {
      for (int64_t j = 0; j < columns_; ++j) {
        const T next = maxima_[at + j];
        // Not negative; a NaN, once taken, is never smaller.
        if (next > memory_.column_maxima[j] || next != next) memory_.column_maxima[j] = next;
      }
    }
  }

 private:
  int64_t columns_;
  MomentMemory<T> memory_;
  std::vector<double> sums_;
  std::vector<T> maxima_;
};

template <class T>
PassArguments<T> rows_of(PassArguments<T> a, int64_t begin, int64_t end) {
  a.first_element += begin * a.columns;
  a.elements = std::min(a.elements - begin * a.columns, (end - begin) * a.columns);
  if (a.moment.row != nullptr) a.moment.row += begin;
  if (a.hessian.row != nullptr) a.hessian.row += begin;
  if (a.row_squares != nullptr) a.row_squares += begin;
  a.rows = end - begin;
  return a;
}

template <class T>
void run_in_bands(const PassArguments<T>& whole, const CpuExecution& execution) {
  const RowBands bands(whole.rows, whole.columns);
  if (bands.count == 1) return run_pass(execution.set, whole);

  BandColumns<T> moment(whole, whole.moment, bands.count);
  BandColumns<T> hessian(whole, whole.hessian, whole.has_hessian ? bands.count : 0);
  const auto run_band = [&](int64_t band) {
    PassArguments<T> a = rows_of(whole, bands.begin(band), bands.begin(band + 1));
    moment.hand_out(band, a.moment);
    if (a.has_hessian) hessian.hand_out(band, a.hessian);
    run_pass(execution.set, a);
  };
  if (execution.parallel_for && whole.elements >= kParallelElements) {
    execution.parallel_for(bands.count, run_band);
  } else {
    for (int64_t band = 0; band < bands.count; ++band) run_band(band);
  }
  moment.collect();
  hessian.collect();
}

template <class T>
void run(PassArguments<T> a, double* parameter_sum_of_squares, const CpuExecution& execution) {
  if (parameter_sum_of_squares == nullptr) return run_in_bands(a, execution);
  std::vector<double> squares(a.rows);
  a.row_squares = squares.data();
  run_in_bands(a, execution);
  *parameter_sum_of_squares = ordered_sum(squares.data(), a.rows);
}

// c_j / mean(c), or 0 before the first step.
template <class T>
std::vector<T> column_shares(const T* col, int64_t columns) {
  const double mean = ordered_sum(col, columns) / static_cast<double>(columns);
  std::vector<T> shares(columns, T{0});
  if (mean == 0) return shares;
  for (int64_t j = 0; j < columns; ++j)
    shares[j] = static_cast<T>(static_cast<double>(col[j]) / mean);
  return shares;
}

}  // namespace

template <class T>
void cpu_begin(PassArguments<T> a, double* parameter_sum_of_squares,
               const CpuExecution& execution) {
  if (a.rows * a.columns == 0) return;
  if (a.kind == PassKind::statistics) {  // looks at the gradient alone
    a.parameter = nullptr;
    a.low_precision_parameter = nullptr;
    a.momentum = nullptr;
  }
  std::vector<T> shares[2];
  MomentMemory<T>* const memories[] = {&a.moment, &a.hessian};
  for (int i = 0; i < (a.has_hessian ? 2 : 1); ++i) {
    MomentMemory<T>& memory = *memories[i];
    memory.column_values = memory.col;
    if (a.kind != PassKind::mean) continue;
    shares[i] = column_shares(memory.col, a.columns);
    memory.column_values = shares[i].data();
  }
  run(a, a.kind == PassKind::statistics ? nullptr : parameter_sum_of_squares, execution);
}

template <class T>
void cpu_finish(PassArguments<T> a, double* parameter_sum_of_squares,
                const CpuExecution& execution) {
  if (a.rows * a.columns == 0) return;
  const T* col = a.has_hessian ? a.hessian.col : a.moment.col;
  std::vector<T> denominators(a.columns);
  for (int64_t j = 0; j < a.columns; ++j) {
    denominators[j] = std::sqrt(col[j] * a.second_moment_scale) + a.eps;
  }
  a.moment.column_values = denominators.data();
  run(a, parameter_sum_of_squares, execution);
}

template <class T>
void cpu_absorb_sums(const double* column_sums, const RowRange& range, double beta, T* col) {
  const auto rows = static_cast<double>(range.rows_total);
  for (int64_t j = 0; j < range.columns; ++j) {
    col[j] =
        static_cast<T>(beta * static_cast<double>(col[j]) + (1 - beta) * (column_sums[j] / rows));
  }
}

#define FUSEDBUN_INSTANTIATE(T)                                                \
  template void cpu_begin<T>(PassArguments<T>, double*, const CpuExecution&);  \
  template void cpu_finish<T>(PassArguments<T>, double*, const CpuExecution&); \
  template void cpu_absorb_sums<T>(const double*, const RowRange&, double, T*);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun

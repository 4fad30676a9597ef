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
void run_pass(InstructionSet set, const PassArguments<T>& arguments, double* sum_of_squares) {
  FUSEDBUN_IN_VARIANT(set, run_pass(arguments, sum_of_squares));
}

// A pass in bands that threads take: at least an eighth of a million elements each, some hundred microseconds, and at
// most 64, because each has column sums of its own. They are 1, 2, 4 ... 64 and equally long but for a unit, so that two,
// four or eight threads have the same to do.
constexpr int64_t kBandElements = int64_t{1} << 17;
constexpr int64_t kBandsMax = 64;
constexpr int64_t kBandRows = 16;       // a band of rows is a multiple of the pass's row group
constexpr int64_t kBandColumns = 1024;  // a band of a single row is one of whole vectors and pages

// Where rows, or the columns of a single row, are cut. Only the shape decides.
struct Bands {
  int64_t total, unit, count;

  Bands(int64_t cut, int64_t cut_unit, int64_t elements) : total(cut), unit(cut_unit), count(1) {
    while (count < kBandsMax && count * 2 * kBandElements <= elements && count * 2 * unit <= total)
      count *= 2;
  }
  int64_t begin(int64_t band) const {
    const int64_t units = (total + unit - 1) / unit;
    return std::min(units * band / count * unit, total);
  }
};

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

// What bands keep apart, and how it becomes the matrix's.
template <class T>
class BandStatistics {
 public:
  BandStatistics(const PassArguments<T>& whole, int64_t bands)
      : moment_(whole, whole.moment, bands),
        hessian_(whole, whole.hessian, whole.has_hessian ? bands : 0),
        squares_(bands) {}

  double* squares(int64_t band) { return &squares_[band]; }
  void hand_out(int64_t band, PassArguments<T>& arguments) {
    moment_.hand_out(band, arguments.moment);
    if (arguments.has_hessian) hessian_.hand_out(band, arguments.hessian);
  }

  void collect(double* parameter_sum_of_squares) const {
    moment_.collect();
    hessian_.collect();
    if (parameter_sum_of_squares == nullptr) return;
    *parameter_sum_of_squares = 0;
    for (const double squares : squares_) *parameter_sum_of_squares += squares;
  }

 private:
  BandColumns<T> moment_, hessian_;
  std::vector<double> squares_;
};

// Elements [begin, end) of a pass over one row.
template <class T>
PassArguments<T> columns_of(PassArguments<T> a, int64_t begin, int64_t end) {
  a.first_element += begin;
  a.columns = end - begin;
  return a;
}

template <class T>
PassArguments<T> rows_of(PassArguments<T> a, int64_t begin, int64_t end) {
  a.first_element += begin * a.columns;
  if (a.moment.row != nullptr) a.moment.row += begin;
  if (a.hessian.row != nullptr) a.hessian.row += begin;
  a.rows = end - begin;
  return a;
}

template <class T>
void run_in_bands(const PassArguments<T>& whole, const CpuExecution& execution,
                  double* sum_of_squares) {
  const bool flat = whole.kind == PassKind::full && whole.rows == 1 && !whole.centralize;
  const int64_t total = flat ? whole.columns : whole.rows;
  const Bands bands(total, flat ? kBandColumns : kBandRows, whole.rows * whole.columns);
  if (bands.count == 1) return run_pass(execution.set, whole, sum_of_squares);

  BandStatistics<T> statistics(whole, bands.count);
  const auto run_band = [&](int64_t band) {
    const int64_t begin = bands.begin(band), end = bands.begin(band + 1);
    PassArguments<T> a = flat ? columns_of(whole, begin, end) : rows_of(whole, begin, end);
    statistics.hand_out(band, a);
    run_pass(execution.set, a, sum_of_squares == nullptr ? nullptr : statistics.squares(band));
  };
  if (execution.parallel_for) {
    execution.parallel_for(bands.count, run_band);
  } else {
    for (int64_t band = 0; band < bands.count; ++band) run_band(band);
  }
  statistics.collect(sum_of_squares);
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
  if (a.kind == PassKind::full &&
      !a.centralize) {  // without row means all rows are one: no short ends
    a.columns *= a.rows;
    a.rows = 1;
  }
  run_in_bands(a, execution, parameter_sum_of_squares);
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
  run_in_bands(a, execution, parameter_sum_of_squares);
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

#pragma once
// The order in which the fused passes add: the same on CPUs and on GPUs, so both give the same bits.
//
//   a row      its columns in blocks of 1024; within a block column j is added to lane j mod 16, then the lanes in one fixed tree;
//              then the blocks, first to last. So are a row's mean, mean(c), and the sum over rows of the rows' sums of squares
//   a column   its rows in bands; row after row within a band, then band after band. Rows that are a single band go on, row after row, from
//              what the matrix's earlier rows have left
//   no rows    where nothing depends on rows (PassKind::full, not centred) elements lie in rows of 1024, the last one shorter
//
// A band is what one thread of a CPU takes, and a band's block of 1024 columns what one block of threads on a GPU takes.
//
// Thread safety: pure functions.
#include <algorithm>
#include <cstdint>

namespace fusedbun {

/// Lanes of a sum: column j belongs to lane j mod 16.
constexpr int kSumLanes = 16;
/// Columns that are added up in lanes before the next ones begin.
constexpr int64_t kSumBlock = 1024;

/// The lanes' sum in one fixed tree; uses them up.
inline double sum_of_lanes_in_place(double* lanes) {
  for (int width = kSumLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

/// The sum of `count` numbers as of a row.
template <class T>
double ordered_sum(const T* values, int64_t count) {
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t end = std::min(begin + kSumBlock, count);
    double lanes[kSumLanes] = {};
    for (int64_t j = begin; j < end; ++j) lanes[j % kSumLanes] += static_cast<double>(values[j]);
    sum += sum_of_lanes_in_place(lanes);
  }
  return sum;
}

/// How the rows of a matrix are cut into bands: 1, 2, 4 ... 256 that are equally long except for 16 rows, of at least 8192 elements and
/// about 64 rows each. Each has column sums of its own, 8 bytes per column, so much shorter ones would cost memory traffic; longer ones
/// would leave a GPU's multiprocessors idle. The shape alone decides.
struct RowBands {
  int64_t rows = 0;
  int64_t count = 1;

  RowBands() = default;
  RowBands(int64_t total_rows, int64_t columns) : rows(total_rows) {
    constexpr int64_t kBandsMax = 256, kElementsMin = 8192, kRowsMin = 64;
    while (count < kBandsMax && count * 2 * kElementsMin <= rows * columns &&
           count * 2 * kRowsMin <= rows)
      count *= 2;
  }
  int64_t begin(int64_t band) const {
    constexpr int64_t kUnit = 16;  // rows that a CPU's pass may take together
    const int64_t units = (rows + kUnit - 1) / kUnit;
    return std::min(units * band / count * kUnit, rows);
  }
};

}  // namespace fusedbun

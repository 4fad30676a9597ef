#include "fusedbun/core/gradient_kernels.h"

#include <algorithm>
#include <vector>

#include "fusedbun/core/step_cpu_variants.h"
#include "fusedbun/core/sum_order.h"

namespace fusedbun {

bool squares_are_finite(ElementType type, const void* values, int64_t count, InstructionSet set) {
  FUSEDBUN_IN_VARIANT(set, squares_are_finite(type, values, count));
}

template <class T>
bool squares_are_finite(const T* values, int64_t count) {
  return squares_are_finite(sizeof(T) == sizeof(float) ? ElementType::f32 : ElementType::f64,
                            values, count);
}

bool copy_and_test(ElementType source_type, const void* source, ElementType destination_type,
                   void* destination, int64_t count, InstructionSet set) {
  FUSEDBUN_IN_VARIANT(set,
                      copy_and_test(source_type, source, destination_type, destination, count));
}

namespace {

constexpr int64_t kPiece = int64_t{1} << 16;  // elements: some ten microseconds

/// Calls work(begin, count) for each piece of `count` elements.
template <class Work>
void in_pieces(int64_t count, const CpuExecution& execution, const Work& work) {
  const int64_t pieces = (count + kPiece - 1) / kPiece;
  const auto work_on = [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    work(begin, std::min(kPiece, count - begin));
  };
  if (execution.parallel_for && pieces > 1) {
    execution.parallel_for(pieces, work_on);
  } else {
    for (int64_t piece = 0; piece < pieces; ++piece) work_on(piece);
  }
}

void round_piece(const float* stepped, float* rows, uint16_t* update, int64_t count,
                 InstructionSet set) {
  FUSEDBUN_IN_VARIANT(set, round_update(stepped, rows, update, count));
}

void apply_piece(const uint16_t* update, float* rows, int64_t count, InstructionSet set) {
  FUSEDBUN_IN_VARIANT(set, apply_update(update, rows, count));
}

}  // namespace

void round_update(const float* stepped, float* rows, uint16_t* update, int64_t count,
                  const CpuExecution& execution) {
  in_pieces(count, execution, [&](int64_t begin, int64_t length) {
    round_piece(stepped + begin, rows + begin, update + begin, length, execution.set);
  });
}

void apply_update(const uint16_t* update, float* rows, int64_t count,
                  const CpuExecution& execution) {
  in_pieces(count, execution, [&](int64_t begin, int64_t length) {
    apply_piece(update + begin, rows + begin, length, execution.set);
  });
}

namespace {

template <class T>
double sum_parts(std::span<const void* const> parts, ElementType type, int64_t begin, T* sum,
                 int64_t count, bool with_squares, InstructionSet set) {
  const cpu::SummedParts summed{parts.data(), static_cast<int>(parts.size()), type, begin};
  FUSEDBUN_IN_VARIANT(set, sum_in_order(summed, sum, count, with_squares));
}

}  // namespace

template <class T>
void sum_in_order(std::span<const void* const> parts, ElementType type, T* sum, int64_t count,
                  InstructionSet set) {
  sum_parts(parts, type, 0, sum, count, /*with_squares=*/false, set);
}

template <class T>
double sum_in_order_with_squares(std::span<const void* const> parts, ElementType type, T* sum,
                                 int64_t count, const CpuExecution& execution) {
  std::vector<double> squares((count + kPiece - 1) / kPiece);
  in_pieces(count, execution, [&](int64_t begin, int64_t length) {
    squares[begin / kPiece] = sum_parts(parts, type, begin, sum + begin, length,
                                        /*with_squares=*/true, execution.set);
  });
  double total = 0;
  for (const double part : squares) total += part;
  return total;
}

namespace {

template <class T>
double sum_of_block(const T* values, int64_t count) {
  FUSEDBUN_IN_VARIANT(best_instruction_set(), sum_of_squares(values, count));
}

}  // namespace

template <class T>
double sum_of_squares(const T* values, int64_t count, int64_t columns) {
  std::vector<double> rows;
  for (int64_t row = 0; row < count; row += columns) {
    const int64_t end = std::min(row + columns, count);
    double sum = 0;
    for (int64_t block = row; block < end; block += kSumBlock) {
      sum += sum_of_block(values + block, std::min(kSumBlock, end - block));
    }
    rows.push_back(sum);
  }
  return ordered_sum(rows.data(), static_cast<int64_t>(rows.size()));
}

#define FUSEDBUN_INSTANTIATE(T)                                                               \
  template bool squares_are_finite<T>(const T*, int64_t);                                     \
  template void sum_in_order<T>(std::span<const void* const>, ElementType, T*, int64_t,       \
                                InstructionSet);                                              \
  template double sum_in_order_with_squares<T>(std::span<const void* const>, ElementType, T*, \
                                               int64_t, const CpuExecution&);                 \
  template double sum_of_squares<T>(const T*, int64_t, int64_t);
FUSEDBUN_INSTANTIATE(float)
FUSEDBUN_INSTANTIATE(double)
#undef FUSEDBUN_INSTANTIATE

}  // namespace fusedbun

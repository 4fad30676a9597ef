#include "fusedbun/dist/step/tensor_kernels.h"

#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/segment_step.h"

#include <algorithm>

namespace fusedbun {
namespace {

/// Calls work(begin, count) for pieces of `count` elements, on LibTorch's threads.
template <class Work>
void in_pieces(int64_t count, const Work& work) {
  constexpr int64_t kPiece = int64_t{1} << 16;  // some ten microseconds
  on_torch_threads((count + kPiece - 1) / kPiece, [&](int64_t piece) {
    const int64_t begin = piece * kPiece;
    work(begin, std::min(kPiece, count - begin));
  });
}

uint16_t* bits_of(const at::Tensor& bfloat16) {
  return reinterpret_cast<uint16_t*>(bfloat16.mutable_data_ptr<at::BFloat16>());
}

}  // namespace

bool copy_and_test(const at::Tensor& from, const at::Tensor& to) {
  return copy_and_test(element_type(from.scalar_type()), from.const_data_ptr(),
                       element_type(to.scalar_type()), to.mutable_data_ptr(), from.numel());
}

bool squares_are_finite(const at::Tensor& gradient) {
  return squares_are_finite(element_type(gradient.scalar_type()), gradient.const_data_ptr(),
                            gradient.numel());
}

void round_update(const at::Tensor& stepped, const at::Tensor& rows, const at::Tensor& update) {
  const float* const from = stepped.const_data_ptr<float>();
  float* const to = rows.mutable_data_ptr<float>();
  uint16_t* const rounded = bits_of(update);
  in_pieces(rows.numel(), [&](int64_t begin, int64_t count) {
    round_update(from + begin, to + begin, rounded + begin, count);
  });
}

void apply_update(const at::Tensor& update, const at::Tensor& rows) {
  const uint16_t* const rounded = bits_of(update);
  float* const to = rows.mutable_data_ptr<float>();
  in_pieces(rows.numel(), [&](int64_t begin, int64_t count) {
    apply_update(rounded + begin, to + begin, count);
  });
}

double add_up(const std::vector<at::Tensor>& parts, const at::Tensor& sum) {
  std::vector<const void*> memory;
  for (const at::Tensor& part : parts) memory.push_back(part.const_data_ptr());
  const ElementType type = element_type(parts.front().scalar_type());
  const CpuExecution execution{.parallel_for = on_torch_threads};
  return sum.scalar_type() == at::kDouble
             ? sum_in_order_with_squares(memory, type, sum.mutable_data_ptr<double>(), sum.numel(),
                                         execution)
             : sum_in_order_with_squares(memory, type, sum.mutable_data_ptr<float>(), sum.numel(),
                                         execution);
}

}  // namespace fusedbun

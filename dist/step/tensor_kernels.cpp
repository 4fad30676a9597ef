#include "fusedbun/dist/step/tensor_kernels.h"

#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun {
namespace {

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
  round_update(stepped.const_data_ptr<float>(), rows.mutable_data_ptr<float>(), bits_of(update),
               rows.numel(), {.parallel_for = on_torch_threads});
}

void apply_update(const at::Tensor& update, const at::Tensor& rows) {
  apply_update(bits_of(update), rows.mutable_data_ptr<float>(), rows.numel(),
               {.parallel_for = on_torch_threads});
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

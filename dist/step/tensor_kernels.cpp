#include "fusedbun/dist/step/tensor_kernels.h"

#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun {

bool copy_and_test(const at::Tensor& from, const at::Tensor& to) {
  return copy_and_test(element_type(from.scalar_type()), from.const_data_ptr(),
                       element_type(to.scalar_type()), to.mutable_data_ptr(), from.numel());
}

bool squares_are_finite(const at::Tensor& gradient) {
  return squares_are_finite(element_type(gradient.scalar_type()), gradient.const_data_ptr(),
                            gradient.numel());
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

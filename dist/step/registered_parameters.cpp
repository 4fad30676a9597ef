#include "fusedbun/dist/step/registered_parameters.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

plan::ElementType element_type(const RegisteredParameter& parameter) {
  switch (parameter.tensor.scalar_type()) {
    case at::kFloat:
      return plan::ElementType::f32;
    case at::kDouble:
      return plan::ElementType::f64;
    case at::kBFloat16:
      return plan::ElementType::bf16;
    case at::kHalf:
      return plan::ElementType::f16;
    default:
      throw ConfigError("parameter '" + parameter.name + "' has type " +
                        c10::toString(parameter.tensor.scalar_type()) +
                        ": parameters are float32, float64, bfloat16 or float16");
  }
}

/// The bytes from the first to the last element, whatever the strides.
struct MemoryRange {
  uintptr_t begin, end;
  const std::string* name;
};

MemoryRange memory_of(const RegisteredParameter& parameter) {
  const at::Tensor& tensor = parameter.tensor;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  return {begin, begin + static_cast<uintptr_t>((last + 1) * tensor.element_size()),
          &parameter.name};
}

RegisteredParameter* find(std::span<RegisteredParameter> list, const at::Tensor& tensor) {
  const auto it = std::ranges::find_if(
      list, [&](const RegisteredParameter& p) { return p.tensor.is_same(tensor); });
  return it == list.end() ? nullptr : &*it;
}

}  // namespace

plan::ParameterSpec RegisteredParameter::spec() const {
  return {name, tensor.sizes().vec(), element_type(*this), group};
}

Registration register_parameters(std::span<const NamedTensor> named, int group,
                                 std::span<const RegisteredParameter> present) {
  Registration registration;
  for (const auto& [name, tensor] : named) {
    if (!tensor.defined()) continue;
    const auto known = std::ranges::find_if(
        present, [&](const RegisteredParameter& p) { return p.tensor.is_same(tensor); });
    FUSEDBUN_REQUIRE(known == present.end(), ConfigError,
                     "parameter '" + name + "' of group " + std::to_string(group) +
                         " is parameter '" + known->name + "' of group " +
                         std::to_string(known->group) + ": a tensor belongs to one group");
    std::vector<RegisteredParameter>& list =
        tensor.requires_grad() ? registration.trainable : registration.frozen;
    if (RegisteredParameter* first = find(list, tensor)) {
      first->aliases.push_back(name);
      continue;
    }
    list.push_back({name, {}, tensor, group});
  }
  return registration;
}

void require_trainable(std::span<const RegisteredParameter> parameters) {
  std::vector<MemoryRange> ranges;
  for (const RegisteredParameter& parameter : parameters) {
    FUSEDBUN_REQUIRE(parameter.tensor.layout() == at::kStrided, ConfigError,
                     "parameter '" + parameter.name + "' is not a dense tensor");
    FUSEDBUN_REQUIRE(
        parameter.tensor.is_leaf(), ConfigError,
        "parameter '" + parameter.name + "' is not a leaf: it has no gradient of its own");
    element_type(parameter);
    if (parameter.tensor.numel() > 0) ranges.push_back(memory_of(parameter));
  }
  std::ranges::sort(ranges, {}, &MemoryRange::begin);
  for (size_t i = 1; i < ranges.size(); ++i) {
    FUSEDBUN_REQUIRE(ranges[i].begin >= ranges[i - 1].end, ConfigError,
                     "parameters '" + *ranges[i - 1].name + "' and '" + *ranges[i].name +
                         "' share memory without being one tensor: register one of them");
  }
}

}  // namespace fusedbun

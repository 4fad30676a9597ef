#include "fusedbun/tests/dist/step/layout_fuzz_values.h"

#include <cmath>

namespace fusedbun::testing {
namespace {

// splitmix64 (Steele et al. 2014): good enough and without a state to seed.
uint64_t next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

uint64_t mixed(std::initializer_list<uint64_t> keys) {
  uint64_t state = 0;
  for (const uint64_t key : keys) {
    state ^= key;
    state = next(state);
  }
  return state;
}

double unit(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace

double rounded_to(ElementType type, double value) {
  switch (type) {
    case ElementType::f64:
      return value;
    case ElementType::bf16:
      return static_cast<double>(static_cast<float>(c10::BFloat16(static_cast<float>(value))));
    case ElementType::f16:
      return static_cast<double>(static_cast<float>(c10::Half(static_cast<float>(value))));
    case ElementType::f32:
      break;
  }
  return static_cast<double>(static_cast<float>(value));
}

int64_t element_count(const FuzzParameter& parameter) {
  int64_t count = 1;
  for (const int64_t size : parameter.shape) count *= size;
  return count;
}

std::vector<double> values(const FuzzCase& fuzz_case, const FuzzParameter& parameter, int rank,
                           Purpose purpose, int64_t key) {
  uint64_t state =
      mixed({fuzz_case.seed, static_cast<uint64_t>(parameter.id), static_cast<uint64_t>(rank),
             static_cast<uint64_t>(purpose), static_cast<uint64_t>(key)});
  std::vector<double> elements(static_cast<size_t>(element_count(parameter)));
  for (double& element : elements) {
    const double kind = unit(next(state));
    // From 1/32 to 4 in size. Nothing lies near eps = 1e-8, where one rounding would decide about the mask.
    const double size = std::exp2(-5 + 7 * unit(next(state)));
    element = rounded_to(parameter.type, next(state) % 2 == 0 ? size : -size);
    // The first one is large in any case: a gradient of zeros that somebody writes looks like zero_grad.
    const bool is_gradient = purpose != Purpose::start && purpose != Purpose::written;
    if (!is_gradient || &element == &elements.front()) continue;
    if (kind < 0.15) element = 0;
    if (kind > 0.97) element = rounded_to(parameter.type, 1e-12 * element);
  }
  return elements;
}

at::Tensor tensor_of(const FuzzParameter& parameter, const std::vector<double>& elements) {
  return at::tensor(elements, at::kDouble)
      .reshape(parameter.shape)
      .to(scalar_type_of(parameter.type), /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor parameter_of(const FuzzCase& fuzz_case, const FuzzParameter& parameter, int rank) {
  at::Tensor tensor = tensor_of(parameter, values(fuzz_case, parameter, rank, Purpose::start, 0));
  if (parameter.layout == Layout::transposed && tensor.dim() >= 2) {
    tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1);
  }
  if (parameter.layout == Layout::every_second && tensor.dim() >= 1) {
    std::vector<int64_t> doubled = parameter.shape;
    doubled[0] *= 2;
    tensor = at::zeros(doubled, tensor.options()).slice(0, 0, {}, 2).copy_(tensor);
  }
  return tensor.requires_grad_(!parameter.frozen);
}

}  // namespace fusedbun::testing

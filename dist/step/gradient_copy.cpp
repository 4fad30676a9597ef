#include "fusedbun/dist/step/gradient_copy.h"

#include <bit>

#include "fusedbun/core/step_cpu.h"
#include "fusedbun/core/widest.h"

namespace fusedbun {
namespace {

// A float is NaN or inf exactly if all exponent bits are set. Integers, because a loop that ORs
// them is one that compilers turn into vector code without being allowed to reorder floating point.
template <class Float, class Bits, Bits kExponent>
[[gnu::always_inline]] inline bool copy_and_test_bits(const Float* source, Float* destination,
                                                      int64_t count) {
  Bits nonfinite = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Float g = source[i];
    destination[i] = g;
    const Bits square = std::bit_cast<Bits>(g * g);
    nonfinite |= static_cast<Bits>((square & kExponent) == kExponent);
  }
  return nonfinite == 0;
}

}  // namespace

FUSEDBUN_WIDEST bool copy_and_test(const float* source, float* destination, int64_t count) {
  return copy_and_test_bits<float, uint32_t, 0x7f800000u>(source, destination, count);
}

FUSEDBUN_WIDEST bool copy_and_test(const double* source, double* destination, int64_t count) {
  return copy_and_test_bits<double, uint64_t, 0x7ff0000000000000u>(source, destination, count);
}

FUSEDBUN_WIDEST bool copy_and_test(const float* source, uint16_t* destination, int64_t count) {
  uint32_t nonfinite = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float g = source[i];
    const auto bits = std::bit_cast<uint32_t>(g);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    destination[i] = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
    const auto square = std::bit_cast<uint32_t>(g * g);
    nonfinite |= static_cast<uint32_t>((square & 0x7f800000u) == 0x7f800000u);
  }
  return nonfinite == 0;
}

bool copy_and_test(const at::Tensor& source, const at::Tensor& destination) {
  const int64_t count = source.numel();
  if (destination.scalar_type() == at::kBFloat16) {
    return copy_and_test(source.const_data_ptr<float>(),
                         static_cast<uint16_t*>(destination.mutable_data_ptr()), count);
  }
  if (source.scalar_type() == at::kDouble) {
    return copy_and_test(source.const_data_ptr<double>(), destination.mutable_data_ptr<double>(),
                         count);
  }
  return copy_and_test(source.const_data_ptr<float>(), destination.mutable_data_ptr<float>(),
                       count);
}

bool test(const at::Tensor& gradient) {
  return gradient.scalar_type() == at::kDouble
             ? squares_are_finite(gradient.const_data_ptr<double>(), gradient.numel())
             : squares_are_finite(gradient.const_data_ptr<float>(), gradient.numel());
}

}  // namespace fusedbun

#pragma once
// Stochastic rounding to bfloat16: a value between two of its neighbours becomes the upper one with the probability that makes the mean
// right. So steps far below the parameter's resolution add up, where rounding to nearest would lose every one of them, and no wider copy
// of the parameter is kept (Gupta et al., Deep Learning with Limited Numerical Precision, 2015; for bfloat16 weights Zamirai et al., 2020).
//
// The random bits are a hash of (parameter, its step t, element): the same on CPUs and GPUs, on any number of ranks, and in a run that was
// stopped and went on.
//
// Thread safety: pure functions.
#include <cstdint>

namespace fusedbun {

/// A permutation of the 32-bit words whose output bits each depend on all input bits (Wellons' lowbias32). step_cpu_vector.inc and
/// cuda_elements.cuh have the same for many elements at once.
constexpr uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352dU;
  x ^= x >> 15;
  x *= 0x846ca68bU;
  x ^= x >> 16;
  return x;
}

/// Of step t, and of the parameter that is number `parameter` in its optimizer.
constexpr uint32_t step_seed(int64_t t) {
  return mixed(static_cast<uint32_t>(t) + 0x9e3779b9U);
}
constexpr uint32_t parameter_seed(int64_t parameter) {
  return mixed(static_cast<uint32_t>(parameter) + 0x85ebca6bU);
}
constexpr uint32_t rounding_seed(uint32_t of_step, uint32_t of_parameter) {
  return mixed(of_step ^ of_parameter);
}

/// What is added to the lower half of a float32 before the upper half is taken: 0 to 0xffff. `element` counts in the whole parameter; from
/// 2^32 on its bits come again.
constexpr uint32_t rounding_bits(uint32_t seed, int64_t element) {
  return mixed(static_cast<uint32_t>(element) + seed) >> 16;
}

/// The bits of a bfloat16: those of a float32 `bits`, rounded with `random` of rounding_bits. NaN becomes the quiet one.
constexpr uint16_t stochastically_rounded(uint32_t bits, uint32_t random) {
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return is_nan ? uint16_t{0x7fc0} : static_cast<uint16_t>((bits + random) >> 16);
}

}  // namespace fusedbun

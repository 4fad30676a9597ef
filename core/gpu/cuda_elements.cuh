#pragma once
// Arithmetic and elements in kernels: operations that no compiler may contract, narrow types, four elements at a time.
//
// Thread safety: pure functions.
#include <cstdint>

#include "fusedbun/core/gpu/cuda_launch.cuh"

namespace fusedbun::FUSEDBUN_CUDA {

// --- arithmetic that the compiler may not contract ----------------------------------------------

inline __device__ float mul(float a, float b) {
  return __fmul_rn(a, b);
}
inline __device__ double mul(double a, double b) {
  return __dmul_rn(a, b);
}
inline __device__ float add(float a, float b) {
  return __fadd_rn(a, b);
}
inline __device__ double add(double a, double b) {
  return __dadd_rn(a, b);
}
inline __device__ float divide(float a, float b) {
  return __fdiv_rn(a, b);
}
inline __device__ double divide(double a, double b) {
  return __ddiv_rn(a, b);
}
inline __device__ float root(float a) {
  return __fsqrt_rn(a);
}
inline __device__ double root(double a) {
  return __dsqrt_rn(a);
}
inline __device__ float magnitude(float a) {
  return fabsf(a);
}
inline __device__ double magnitude(double a) {
  return fabs(a);
}

// Keeps NaN, as fmax and fmin do not.
template <class T>
__device__ T larger(T a, T b) {
  return a > b || a != a ? a : b;
}
template <class T>
__device__ T smaller(T a, T b) {
  return a < b || a != a ? a : b;
}

// --- elements as they are stored ----------------------------------------------------------------

// bfloat16 is the upper half of a float32; rounding is to nearest even, NaN becomes the quiet one.
inline __device__ float widened_bf16(uint16_t x) {
  return __uint_as_float(static_cast<unsigned>(x) << 16);
}
inline __device__ uint16_t rounded_to_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline __device__ float widened_f16(uint16_t x) {
  const unsigned sign = static_cast<unsigned>(x & 0x8000u) << 16;
  const unsigned magnitude = x & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // A subnormal one is a multiple of 2^-24.
  if (magnitude < 0x400u) {
    const float value = __fmul_rn(static_cast<float>(magnitude), 5.9604644775390625e-8f);
    return __uint_as_float(__float_as_uint(value) | sign);
  }
  return __uint_as_float(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

// To nearest even; NaN becomes the quiet one.
inline __device__ uint16_t rounded_to_f16(float x) {
  const unsigned bits = __float_as_uint(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const unsigned magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // from 65520 on: inf
  if (magnitude < 0x38800000u) {  // subnormal: a multiple of 2^-24, to which adding 0.5 rounds
    const float shifted = __fadd_rn(__uint_as_float(magnitude), 0.5f);
    return sign | static_cast<uint16_t>(__float_as_uint(shifted) - 0x3f000000u);
  }
  const unsigned rebased = magnitude - ((127u - 15u) << 23);
  return sign | static_cast<uint16_t>((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13);
}

// A float32 from a bfloat16 parameter and its remainder, and back; a zero with a remainder of half a unit or more was written by the
// program.
inline __device__ float with_remainder(uint16_t parameter, uint16_t remainder) {
  const unsigned high = parameter;
  unsigned low = remainder;
  if ((high & 0x7fffu) < (low >> 15)) low = 0;
  return __uint_as_float(((high - (low >> 15)) << 16) | low);
}
inline __device__ void split(float x, uint16_t& parameter, uint16_t& remainder) {
  const unsigned bits = x != x ? 0x7fc00000u : __float_as_uint(x);
  parameter = static_cast<uint16_t>((bits + 0x8000u) >> 16);
  remainder = static_cast<uint16_t>(bits);
}

// Those of stochastic_rounding.h, whose functions a kernel cannot call.
inline __device__ unsigned mixed(unsigned x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}
inline __device__ uint16_t stochastically_rounded(float x, unsigned seed, int64_t element) {
  if (x != x) return 0x7fc0;
  const unsigned random = mixed(static_cast<unsigned>(element) + seed) >> 16;
  return static_cast<uint16_t>((__float_as_uint(x) + random) >> 16);
}

constexpr int kFour = 4;
// Four elements that lie side by side, moved at once where they are aligned.
template <class Stored>
struct alignas(4 * sizeof(Stored) < 16 ? 4 * sizeof(Stored) : 16) Four {
  Stored x[kFour];
};

// `live` of them exist; the others are 0. `at_once`: all four, aligned.
template <class Stored>
__device__ Four<Stored> load(const Stored* from, int live, bool at_once) {
  if (at_once) return *reinterpret_cast<const Four<Stored>*>(from);
  Four<Stored> four = {};
  for (int i = 0; i < kFour; ++i) {
    if (i < live) four.x[i] = from[i];
  }
  return four;
}
template <class Stored>
__device__ void store(Stored* to, const Four<Stored>& four, int live, bool at_once) {
  if (at_once) {
    *reinterpret_cast<Four<Stored>*>(to) = four;
    return;
  }
  for (int i = 0; i < kFour; ++i) {
    if (i < live) to[i] = four.x[i];
  }
}

template <class Stored>
__device__ bool is_in_fours(const Stored* memory) {
  return reinterpret_cast<uintptr_t>(memory) % alignof(Four<Stored>) == 0;
}

}  // namespace fusedbun::FUSEDBUN_CUDA

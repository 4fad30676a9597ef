#pragma once
// In place of core's header of this name: what the .cu files are written in, for the CPU (tests/cuda_on_cpu/cuda_on_cpu.h).
//
// Thread safety: as there.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_on_cpu.h"
#include "fusedbun/core/gpu/cuda_namespace.h"

/// Memory that the threads of a block share, in a kernel.
#define FUSEDBUN_SHARED(Type, name) \
  static const char name##_key = 0; \
  Type& name =                      \
      *static_cast<Type*>(::fusedbun::cuda_on_cpu::shared_memory(&name##_key, sizeof(Type)))

namespace fusedbun::cuda_on_cpu {

template <class... Parameters, class... Arguments>
void launch(const char* what, void (*kernel)(Parameters...), int64_t blocks, int threads,
            CudaStream, const Arguments&... arguments) {
  run_blocks(what, blocks, threads, [&] { kernel(arguments...); });
}

template <class T>
T shuffle_down(T value, unsigned delta, int width) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffled_down(bits, delta, width);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned as_bits(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline long long as_bits(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

}  // namespace fusedbun::cuda_on_cpu

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::fusedbun::cuda_on_cpu::current_thread())
#define blockIdx (::fusedbun::cuda_on_cpu::current_block())
#define __syncthreads ::fusedbun::cuda_on_cpu::synchronize_threads
#define __shfl_down_sync(mask, value, delta, width) \
  ::fusedbun::cuda_on_cpu::shuffle_down(value, delta, width)
#define __fmul_rn(a, b) ((a) * (b))
#define __dmul_rn(a, b) ((a) * (b))
#define __fadd_rn(a, b) ((a) + (b))
#define __dadd_rn(a, b) ((a) + (b))
#define __fdiv_rn(a, b) ((a) / (b))
#define __ddiv_rn(a, b) ((a) / (b))
#define __fsqrt_rn(a) std::sqrt(a)
#define __dsqrt_rn(a) std::sqrt(a)
#define __uint_as_float ::fusedbun::cuda_on_cpu::as_float
#define __float_as_uint ::fusedbun::cuda_on_cpu::as_bits
#define __double_as_longlong ::fusedbun::cuda_on_cpu::as_bits
using std::fabs;

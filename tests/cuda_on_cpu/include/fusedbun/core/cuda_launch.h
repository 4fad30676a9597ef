#pragma once
// In place of core's header of this name: the kernels of the .cu files run on the CPU, in the thread that launches them.
//
// The blocks of a launch run one after the other, in an order drawn from a seed, because no order is promised. The threads of a block are
// fibers that take turns, also in a drawn order, and change at __syncthreads and shuffles alone, as late as those allow: what one thread
// writes before a missing barrier, another has not seen. Shared memory is full of rubbish when a block begins.
//
// Thread safety: any number of threads may launch at the same time.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "fusedbun/core/cuda_namespace.h"
#include "fusedbun/core/cuda_stream.h"
#include "fusedbun/core/error.h"

/// Memory that the threads of a block share, in a kernel.
#define FUSEDBUN_SHARED(Type, name) \
  static const char name##_key = 0; \
  Type& name =                      \
      *static_cast<Type*>(::fusedbun::cuda_on_cpu::shared_memory(&name##_key, sizeof(Type)))

/// Before a loop; changes nothing here.
#define FUSEDBUN_UNROLL_TWICE

namespace fusedbun::cuda_on_cpu {

struct Index {
  unsigned x = 0;
};

/// Of the fiber that runs.
const Index& current_thread();
const Index& current_block();
const Index& current_grid();

/// Until all threads of the block are here. Throws std::logic_error in `launch` if some never come.
void synchronize_threads();
/// What the thread `delta` places further among `width` neighbours gives; its own value where there is none. All 32 threads of the warp.
uint64_t shuffled_down(uint64_t value, unsigned delta, int width);

/// Memory of the block that runs: `bytes` at the same address for all of its threads, one piece per `key`.
void* shared_memory(const void* key, size_t bytes);

/// Runs `kernel` for every thread of every block.
void run_blocks(const std::string& what, int64_t blocks, int threads,
                const std::function<void()>& kernel);

/// The seed of the orders in which this thread's next launches run their blocks and threads.
void set_order(uint64_t seed);
/// Launches of this thread since it began, by what they do.
int64_t launches();

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
#define gridDim (::fusedbun::cuda_on_cpu::current_grid())
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

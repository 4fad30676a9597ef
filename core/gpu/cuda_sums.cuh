#pragma once
// Sums in kernels, in the order of sum_order.h.
//
// Thread safety: all threads of a block call together.
#include "fusedbun/core/gpu/cuda_elements.cuh"
#include "fusedbun/core/sum_order.h"

namespace fusedbun::FUSEDBUN_CUDA {

/// Of a block, in every kernel that adds up.
constexpr int kThreads = 128;
constexpr unsigned kWholeWarp = 0xffffffffu;

// The tree over sixteen lanes, one in each of sixteen threads.
inline __device__ double sum_of_lanes(double lane) {
  for (int width = kSumLanes / 2; width > 0; width /= 2)
    lane = add(lane, __shfl_down_sync(kWholeWarp, lane, width, kSumLanes));
  return lane;
}

// The sum of value(0) ... value(count - 1) by a block of kThreads threads, which all get it.
template <class Value>
__device__ __forceinline__ double ordered_sum_of(int64_t count, Value value) {
  constexpr int kBlocksAtOnce = kThreads / kSumLanes;
  struct Memory {
    double of_block[kBlocksAtOnce];
    double total;
  };
  FUSEDBUN_SHARED(Memory, memory);
  const int lane = threadIdx.x % kSumLanes, place = threadIdx.x / kSumLanes;
  double sum = 0;
  for (int64_t first = 0; first < count; first += kBlocksAtOnce * kSumBlock) {
    const int64_t begin = first + place * kSumBlock;
    const int64_t end = begin + kSumBlock < count ? begin + kSumBlock : count;
    double own = 0;
    for (int64_t j = begin + lane; j < end; j += kSumLanes) own = add(own, value(j));
    own = sum_of_lanes(own);
    if (lane == 0) memory.of_block[place] = own;
    __syncthreads();
    for (int i = 0; i < kBlocksAtOnce && first + i * kSumBlock < count; ++i)
      sum = add(sum, memory.of_block[i]);
    __syncthreads();  // before the next blocks
  }
  if (threadIdx.x == 0) memory.total = sum;
  __syncthreads();
  return memory.total;
}

}  // namespace fusedbun::FUSEDBUN_CUDA

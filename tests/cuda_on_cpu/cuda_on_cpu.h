#pragma once
// Kernels of the .cu files on the CPU, in the thread that launches them.
//
// The blocks of a launch run one after the other, in an order drawn from a seed, because no order is promised. The threads of a block are
// fibers that take turns, also in a drawn order, and change at __syncthreads and shuffles alone, as late as those allow: what one thread
// writes before a missing barrier, another has not seen. One warp after the other runs on until it waits for the block: what a warp that is
// far ahead overwrites, another has not read. Shared memory is full of rubbish when a block begins.
//
// Thread safety: any number of threads may launch at the same time.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/cuda_stream.h"

namespace fusedbun::cuda_on_cpu {

struct Index {
  unsigned x = 0;
};

/// Of the fiber that runs.
const Index& current_thread();
const Index& current_block();

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

}  // namespace fusedbun::cuda_on_cpu

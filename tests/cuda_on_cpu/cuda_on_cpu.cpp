#include "cuda_on_cpu.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fusedbun::cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;

enum class Meeting { none, block, warp };

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  Index thread;
  Meeting waits_at = Meeting::none;
  bool is_done = false;
  uint64_t shuffled = 0;  // what it offers to its warp
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

// The block that runs in this thread, and its fibers, which are used again for the next one.
struct Multiprocessor {
  std::mt19937_64 order{1};
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  int threads = 0;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
  Index block;
  std::map<const void*, std::vector<std::byte>> shared;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
#endif

  ~Multiprocessor() {
    for (const auto& fiber : fibers) munmap(fiber->stack, kStackBytes);
  }
};

Multiprocessor& here() {
  thread_local Multiprocessor multiprocessor;
  return multiprocessor;
}

void enter(Multiprocessor& m, Fiber& fiber) {
  m.running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.fake_stack, fiber.stack, kStackBytes);
#endif
  swapcontext(&m.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.fake_stack, nullptr, nullptr);
#endif
  m.running = nullptr;
}

// Back to the scheduler; returns when the meeting is over.
void leave(Multiprocessor& m, Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fiber.is_done ? nullptr : &fiber.fake_stack, m.stack_bottom,
                                 m.stack_size);
#endif
  swapcontext(&fiber.context, &m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &m.stack_bottom, &m.stack_size);
#endif
}

void run_fiber() {
  Multiprocessor& m = here();
  Fiber& fiber = *m.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.stack_bottom, &m.stack_size);
#endif
  try {
    (*m.kernel)();
  } catch (...) {
    m.error = std::current_exception();
  }
  fiber.is_done = true;
  leave(m, fiber);
}

void make_fiber(Multiprocessor& m) {
  auto fiber = std::make_unique<Fiber>();
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  fiber->stack = static_cast<char*>(stack);
  m.fibers.push_back(std::move(fiber));
}

void begin_fiber(Multiprocessor& m, unsigned thread) {
  Fiber& fiber = *m.fibers[thread];
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
  fiber.thread.x = thread;
  fiber.waits_at = Meeting::none;
  fiber.is_done = false;
}

// True if every thread from `first` to `end` that still runs waits there.
bool all_wait(const Multiprocessor& m, unsigned first, unsigned end, Meeting meeting) {
  bool any = false;
  for (unsigned i = first; i < end; ++i) {
    if (m.fibers[i]->is_done) continue;
    if (m.fibers[i]->waits_at != meeting) return false;
    any = true;
  }
  return any;
}

void release(Multiprocessor& m, unsigned first, unsigned end) {
  for (unsigned i = first; i < end; ++i) m.fibers[i]->waits_at = Meeting::none;
}

// A warp's threads take turns until each waits for the block or is done.
void run_warp(Multiprocessor& m, const std::vector<unsigned>& threads) {
  const unsigned first = *std::ranges::min_element(threads);
  const auto end = static_cast<unsigned>(first + threads.size());
  for (;;) {
    for (const unsigned i : threads) {
      Fiber& fiber = *m.fibers[i];
      if (!fiber.is_done && fiber.waits_at == Meeting::none) enter(m, fiber);
      if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
    }
    if (!all_wait(m, first, end, Meeting::warp)) return;
    release(m, first, end);
  }
}

// One warp after the other runs as far ahead of the others as barriers allow.
void run_block(Multiprocessor& m, const std::string& what) {
  for (auto& [key, memory] : m.shared) std::fill(memory.begin(), memory.end(), std::byte{0xf7});
  std::vector<std::vector<unsigned>> warps;
  for (unsigned i = 0; i < static_cast<unsigned>(m.threads); ++i) {
    begin_fiber(m, i);
    if (i % kWarp == 0) warps.emplace_back();
    warps.back().push_back(i);
  }
  for (std::vector<unsigned>& warp : warps) std::shuffle(warp.begin(), warp.end(), m.order);
  for (;;) {
    std::shuffle(warps.begin(), warps.end(), m.order);
    for (const std::vector<unsigned>& warp : warps) run_warp(m, warp);
    const auto threads = static_cast<unsigned>(m.threads);
    if (all_wait(m, 0, threads, Meeting::block)) {
      release(m, 0, threads);
      continue;
    }
    const bool all_done =
        std::ranges::all_of(m.fibers, [](const auto& fiber) { return fiber->is_done; });
    if (all_done) return;
    throw std::logic_error(what + ": threads of a block wait for others that never come");
  }
}

void meet(Meeting meeting) {
  Multiprocessor& m = here();
  Fiber& fiber = *m.running;
  fiber.waits_at = meeting;
  leave(m, fiber);
}

}  // namespace

const Index& current_thread() {
  return here().running->thread;
}
const Index& current_block() {
  return here().block;
}

void synchronize_threads() {
  meet(Meeting::block);
}

uint64_t shuffled_down(uint64_t value, unsigned delta, int width) {
  Multiprocessor& m = here();
  Fiber& fiber = *m.running;
  fiber.shuffled = value;
  meet(Meeting::warp);
  const unsigned own = fiber.thread.x;
  const auto group = static_cast<unsigned>(width);
  const uint64_t given =
      own % group + delta < group ? m.fibers[own + delta]->shuffled : fiber.shuffled;
  meet(Meeting::warp);  // before the next shuffle writes
  return given;
}

void* shared_memory(const void* key, size_t bytes) {
  std::vector<std::byte>& memory = here().shared[key];
  if (memory.empty()) memory.assign(bytes, std::byte{0xf7});
  return memory.data();
}

void run_blocks(const std::string& what, int64_t blocks, int threads,
                const std::function<void()>& kernel) {
  if (blocks == 0) return;
  Multiprocessor& m = here();
  while (std::ssize(m.fibers) < threads) make_fiber(m);
  m.threads = threads;
  m.kernel = &kernel;
  std::vector<unsigned> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), m.order);
  for (const unsigned block : order) {
    m.block.x = block;
    run_block(m, what);
  }
}

void set_order(uint64_t seed) {
  here().order.seed(seed);
}

}  // namespace fusedbun::cuda_on_cpu

// Faults on purpose, which a sanitized build must report: a suppression or a setting that hides one would hide faults in
// tests too. `sanitizer_canary FAULT`, FAULT one of those below; each stands where the product's code runs.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "fusedbun/core/segment_step.h"

namespace {

// Stores survive optimisation.
volatile int counter = 0;

void on_two_threads(const std::function<void()>& body) {
  std::thread one(body), two(body);
  one.join();
  two.join();
}

// Hooks of two ranks, called from libtorch_cpu.so. They meet by relaxed atomics, which order nothing; a lock of
// LibTorch's between the two would hide the race.
void race_in_hooks() {
  // On a busy machine one of the two may be held up so long that a single try is not always seen.
  for (int i = 0; i < 20; ++i) {
    std::atomic<int> inside{0};
    on_two_threads([&] {
      const at::Tensor tensor = at::ones({4}).requires_grad_();
      tensor.register_hook([&](const at::Tensor&) {
        inside.fetch_add(1, std::memory_order_relaxed);
        while (inside.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
        counter = counter + 1;
      });
      tensor.sum().backward();
    });
  }
}

// Tasks of one parallel region, called from libgomp.
void race_in_tasks() {
  at::set_num_threads(2);
  fusedbun::on_torch_threads(2, [](int64_t) { counter = counter + 1; });
}

void leak() {
  volatile auto* const lost = new int[16];
  lost[0] = 1;
}

void overflow() {
  const auto memory = std::make_unique<int[]>(4);
  volatile int* const past = memory.get() + 4;
  counter = *past;
}

void signed_overflow() {
  volatile int largest = 0x7fffffff;
  counter = largest + 1;
}

}  // namespace

int main(int count, char** values) {
  const std::map<std::string, void (*)()> faults = {{"race_in_hooks", race_in_hooks},
                                                    {"race_in_tasks", race_in_tasks},
                                                    {"leak", leak},
                                                    {"overflow", overflow},
                                                    {"signed_overflow", signed_overflow}};
  const auto fault = faults.find(count == 2 ? values[1] : "");
  if (fault == faults.end()) {
    std::cerr << "sanitizer_canary: name one fault of canary.cpp\n";
    return 64;
  }
  fault->second();
  std::cout << "made " << fault->first << "\n";
  return EXIT_SUCCESS;
}

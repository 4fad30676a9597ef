// A program that seeds, which asks LibTorch about GPUs, before it asks for one.
//
// It prints whether LibTorch's hooks are those of its CUDA half, whether that is loaded, and what the Job says. With
// FUSEDBUN_ASKS_TOO_EARLY in its environment it asks in a static initialiser, before the library can answer.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <torch/utils.h>

#include <cstdio>
#include <cstdlib>
#include <typeinfo>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/gpu.h"
#include "fusedbun/dist/job/job.h"

// Before the static initialisers of the program, so before fusedbun could register its answer.
__attribute__((constructor(101))) void ask_too_early() {
  if (std::getenv("FUSEDBUN_ASKS_TOO_EARLY") != nullptr) at::detail::getCUDAHooks();
}

int main() {
  using namespace fusedbun;
  torch::manual_seed(1);
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  std::printf("hooks: %s\n", typeid(hooks) == typeid(at::CUDAHooksInterface) ? "none" : "cuda");
  void* const cuda = ::dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  std::printf("libtorch_cuda: %s\n", cuda != nullptr ? "loaded" : "not loaded");
  std::fflush(stdout);
  try {
    if (std::getenv("FUSEDBUN_ASKS_TOO_EARLY") != nullptr) load_gpu_support();
    Job job({.use_gpu = true});
  } catch (const Error& error) {
    std::fprintf(stderr, "fusedbun: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}

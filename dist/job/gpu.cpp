#include "fusedbun/dist/job/gpu.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <string>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

/// The folder of the library that holds `symbol`.
std::string folder_of(const void* symbol) {
  Dl_info info;
  FUSEDBUN_ASSERT(dladdr(symbol, &info) != 0, "LibTorch's own function lies in a library");
  const std::string path = info.dli_fname;
  return path.substr(0, path.find_last_of('/') + 1);
}

}  // namespace

int load_gpu_support() {
  // Its static initialisers register the CUDA kernels; nothing is called by name, so it is never linked.
  const std::string library =
      folder_of(reinterpret_cast<const void*>(&at::globalContext)) + "libtorch_cuda.so";
  FUSEDBUN_REQUIRE(dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr, DeviceError,
                   std::string("LibTorch's CUDA half does not load: ") + dlerror() +
                       " (a CPU-only installation? tests/run.sh installs the whole wheel set)");
  return static_cast<int>(at::detail::getCUDAHooks().deviceCount());
}

}  // namespace fusedbun

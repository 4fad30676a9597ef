#include "fusedbun/dist/job/gpu.h"

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <memory>
#include <string>
#include <typeinfo>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

constexpr const char* kHooks = "CUDAHooks";  // the key under which libtorch_cuda registers them

/// The folder of the library that holds `symbol`.
std::string folder_of(const void* symbol) {
  Dl_info info;
  FUSEDBUN_ASSERT(dladdr(symbol, &info) != 0, "LibTorch's own function lies in a library");
  const std::string path = info.dli_fname;
  return path.substr(0, path.find_last_of('/') + 1);
}

/// Its static initialisers register the CUDA kernels and hooks; nothing is called by name, so it is never linked.
bool load_libtorch_cuda() {
  const std::string library =
      folder_of(reinterpret_cast<const void*>(&at::globalContext)) + "libtorch_cuda.so";
  return dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr;
}

bool has_driver() {
  return dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) != nullptr;
}

/// LibTorch's first question about GPUs. The CUDA half takes this function's place in the registry while it loads.
std::unique_ptr<at::CUDAHooksInterface> load_at_first_question(at::CUDAHooksArgs arguments) {
  static bool asked = false;  // a CUDA half that registers no hooks would end up here again
  if (asked || !has_driver()) return nullptr;
  asked = true;
  return load_libtorch_cuda() ? at::CUDAHooksRegistry()->Create(kHooks, arguments) : nullptr;
}

/// Null from the registry means LibTorch without CUDA, as if nothing were registered.
[[maybe_unused]] const bool g_registered = [] {
  if (!at::CUDAHooksRegistry()->Has(kHooks)) {
    at::CUDAHooksRegistry()->Register(kHooks, load_at_first_question, c10::REGISTRY_FALLBACK);
  }
  return true;
}();

}  // namespace

int load_gpu_support() {
  FUSEDBUN_REQUIRE(load_libtorch_cuda(), DeviceError,
                   std::string("LibTorch's CUDA half does not load: ") + dlerror() +
                       " (a LibTorch for CPUs only? install one for CUDA)");
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  // The interface itself stands for "no CUDA", for good. Without a driver that is the truth.
  const bool has_decided = typeid(hooks) == typeid(at::CUDAHooksInterface);
  if (has_decided && !has_driver()) return 0;
  FUSEDBUN_REQUIRE(!has_decided, DeviceError,
                   "LibTorch was asked about GPUs before its CUDA half could be loaded, and has no "
                   "GPUs from then on: seed and ask after main() has begun (a static initialiser "
                   "did before), or link libtorch_cuda");
  return static_cast<int>(hooks.deviceCount());
}

}  // namespace fusedbun

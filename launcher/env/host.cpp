#include "fusedbun/launcher/env/host.h"

#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <sys/statvfs.h>

#include <array>
#include <limits>
#include <memory>

namespace fusedbun::launcher {

int usable_cores() {
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::optional<SharedMemory> shared_memory() {
  struct statvfs space {};
  if (::statvfs("/dev/shm", &space) != 0) return {};
  const auto block = static_cast<int64_t>(space.f_frsize);
  return SharedMemory{.free_bytes = block * static_cast<int64_t>(space.f_bavail),
                      .total_bytes = block * static_cast<int64_t>(space.f_blocks)};
}

void keep_freed_memory() {
#if defined(__GLIBC__)
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_MMAP_MAX, 0);  // memory mapped for one allocation goes with it
#endif
}

std::vector<std::string> visible_gpus() {
  // The driver's own library, asked at run time: it is on hosts with a GPU only, and no build needs it.
  const std::unique_ptr<void, int (*)(void*)> driver(::dlopen("libcuda.so.1", RTLD_NOW), ::dlclose);
  if (driver == nullptr) return {};
  const auto call = [&]<class... Arguments>(const char* name, Arguments... arguments) {
    auto* const function = reinterpret_cast<int (*)(Arguments...)>(::dlsym(driver.get(), name));
    return function != nullptr && function(arguments...) == 0;
  };
  int count = 0;
  if (!call("cuInit", 0U) || !call("cuDeviceGetCount", &count)) return {};
  std::vector<std::string> names;
  for (int index = 0; index < count; ++index) {
    int device = 0;
    std::array<char, 256> name{};
    const bool known =
        call("cuDeviceGet", &device, index) &&
        call("cuDeviceGetName", name.data(), static_cast<int>(name.size() - 1), device);
    names.emplace_back(known ? name.data() : "unknown");
  }
  return names;
}

}  // namespace fusedbun::launcher

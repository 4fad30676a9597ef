#include "fusedbun/launcher/env/host.h"

#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <sstream>

namespace fusedbun::launcher {

namespace {

/// Of one cgroup, of either version; nothing without a quota.
std::optional<double> quota_of(const std::filesystem::path& cgroup) {
  std::string quota;
  double period = 0;
  if (std::ifstream file(cgroup / "cpu.max"); file >> quota >> period) {  // "max 100000"
    if (quota == "max" || period <= 0) return {};
    return std::strtod(quota.c_str(), nullptr) / period;
  }
  double used = 0;
  std::ifstream quota_file(cgroup / "cpu.cfs_quota_us");
  std::ifstream period_file(cgroup / "cpu.cfs_period_us");
  if (quota_file >> used && period_file >> period && used > 0 && period > 0) return used / period;
  return {};
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::optional<int> cores_of_quota(const std::string& cgroups, const std::filesystem::path& mount) {
  std::optional<double> least;
  std::istringstream lines(cgroups);
  for (std::string line; std::getline(lines, line);) {  // "0::/user.slice", "4:cpu,cpuacct:/job"
    const size_t controllers = line.find(':') + 1;
    const size_t path = line.find(':', controllers) + 1;
    if (controllers == 0 || path == 0) continue;
    const std::string names = line.substr(controllers, path - 1 - controllers);
    const bool is_cpu = names.empty() || ("," + names + ",").find(",cpu,") != std::string::npos;
    if (!is_cpu) continue;
    const std::filesystem::path root = names.empty() ? mount : mount / names;
    // Each level above may be tighter. Inside a container the path may be the host's: then only the root is there.
    std::filesystem::path below = std::filesystem::path(line.substr(path)).relative_path();
    for (bool is_root = false; !is_root; below = below.parent_path()) {
      is_root = below.empty();
      const auto quota = quota_of(root / below);
      if (quota) least = std::min(*quota, least.value_or(*quota));
    }
  }
  if (!least) return {};
  return std::max(1, static_cast<int>(std::ceil(*least - 1e-9)));
}

int usable_cores() {
  cpu_set_t set;
  const int allowed = ::sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const auto paid = cores_of_quota(text_of("/proc/self/cgroup"), "/sys/fs/cgroup");
  return std::min(allowed, paid.value_or(allowed));
}

std::optional<bool> bfloat16_products_in(const std::string& cpuinfo) {
  std::istringstream lines(cpuinfo);
  for (std::string line; std::getline(lines, line);) {  // of the first processor
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word != "flags" && word != "Features") continue;
    while (words >> word) {
      if (word == "avx512_bf16" || word == "amx_bf16" || word == "bf16") return true;
    }
    return false;
  }
  return std::nullopt;
}

std::optional<bool> has_bfloat16_products() {
  return bfloat16_products_in(text_of("/proc/cpuinfo"));
}

std::optional<SharedMemory> shared_memory() {
  struct statvfs space {};
  if (::statvfs("/dev/shm", &space) != 0) return {};
  const auto block = static_cast<int64_t>(space.f_frsize);
  return SharedMemory{.free_bytes = block * static_cast<int64_t>(space.f_bavail),
                      .total_bytes = block * static_cast<int64_t>(space.f_blocks)};
}

ResidentMemory resident_memory() {
  ResidentMemory memory;
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    if (word != "VmHWM:" && word != "VmRSS:") continue;
    int64_t kibibytes = 0;
    file >> kibibytes;
    (word == "VmRSS:" ? memory.bytes : memory.peak_bytes) = kibibytes << 10;
  }
  return memory;
}

void disable_malloc_trim() {
#if defined(__GLIBC__)
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  ::mallopt(M_MMAP_MAX, 0);  // memory mapped for one allocation goes with it
#endif
}

void return_freed_memory() {
#if defined(__GLIBC__)
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);  // which does not grow with what is freed any more
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

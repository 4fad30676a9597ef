// Parallel regions as the thread sanitizer must see them: what the caller wrote before a region is read by its threads, and
// what they wrote is read by the caller after it. LibTorch's libgomp orders both by futexes that the sanitizer does not see,
// so every write of a region would be reported. This GOMP_parallel, linked into the program, stands before libgomp's and
// tells the sanitizer of the two edges; races between the threads of one region are still found.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

namespace {

using RegionBody = void (*)(void*);
using Parallel = void (*)(RegionBody, void*, unsigned, unsigned);

struct Region {
  RegionBody body;
  void* data;
  char entered;  ///< only the address is used: the edge from the caller to the threads
  char left;     ///< and the one back
};

void run(void* opaque) {
  auto* region = static_cast<Region*>(opaque);
  __tsan_acquire(&region->entered);
  region->body(region->data);
  __tsan_release(&region->left);
}

}  // namespace

extern "C" void GOMP_parallel(RegionBody body, void* data, unsigned threads, unsigned flags) {
  static const auto libgomp = reinterpret_cast<Parallel>(::dlsym(RTLD_NEXT, "GOMP_parallel"));
  if (libgomp == nullptr) std::abort();  // the program is linked without libgomp
  Region region{body, data, 0, 0};
  __tsan_release(&region.entered);
  libgomp(run, &region, threads, flags);
  __tsan_acquire(&region.left);
}

#include "fusedbun/core/error.h"

#include <cstdio>
#include <cstdlib>

namespace fusedbun {

void assertion_failed(const char* condition, const char* file, int line,
                      const std::string& sentence) {
  std::fprintf(stderr, "fusedbun: our bug: %s (%s) at %s:%d\n", sentence.c_str(), condition, file,
               line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace fusedbun

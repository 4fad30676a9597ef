#include "fusedbun/core/error.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace fusedbun {
namespace {

// What the compiler calls a file, without the way from the build folder to it: "core/options.cpp".
const char* relative_to_project(const char* file) {
  for (const std::string_view prefix : {"../", "include/fusedbun/"}) {
    while (std::string_view(file).starts_with(prefix)) file += prefix.size();
  }
  return file;
}

}  // namespace

void assertion_failed(const char* condition, const char* file, int line,
                      const std::string& sentence) {
  std::fprintf(stderr, "fusedbun: our bug: %s (%s) at %s:%d\n", sentence.c_str(), condition,
               relative_to_project(file), line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace fusedbun

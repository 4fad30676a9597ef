#include "fusedbun/core/descriptor_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>

#include "fusedbun/core/error.h"

namespace fusedbun {
namespace {

/// For what the program opens besides: files, libraries, threads' event descriptors.
constexpr int64_t kSpare = 64;

int64_t open_descriptors() {
  std::error_code unreadable;
  const std::filesystem::directory_iterator entries("/proc/self/fd", unreadable);
  return unreadable ? kSpare : std::distance(begin(entries), end(entries));
}

}  // namespace

void raise_descriptor_limit() {
  constexpr rlim_t kEnough = 65'536;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min(limit.rlim_max, kEnough);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

void require_descriptors(const std::string& actor, int64_t needed, const std::string& purpose) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto wanted = static_cast<rlim_t>(open_descriptors() + needed + kSpare);
  if (limit.rlim_cur >= wanted) return;
  FUSEDBUN_REQUIRE(limit.rlim_max >= wanted, ConfigError,
                   actor + " needs " + std::to_string(wanted) + " file descriptors for " + purpose +
                       ", and the hard limit is " + std::to_string(limit.rlim_max) +
                       ": raise it (ulimit -Hn, LimitNOFILE)");
  limit.rlim_cur = wanted;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace fusedbun

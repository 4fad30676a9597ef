#pragma once
// A clock that nobody sets: microseconds since some moment before this process.
//
// Thread safety: a function without state.
#include <chrono>
#include <cstdint>

namespace fusedbun::control {

inline int64_t steady_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace fusedbun::control

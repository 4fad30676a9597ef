#pragma once
// Thread safety: any thread.
#include <chrono>

namespace fusedbun::monitoring {

/// Now, in seconds.
inline double unix_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace fusedbun::monitoring

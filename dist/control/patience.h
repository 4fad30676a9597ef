#pragma once
// How long a call may wait for something: its client's deadline, and never more than the server's own.
//
// Thread safety: functions without state.
#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>

namespace fusedbun::control {

inline constexpr std::chrono::seconds kPatienceMax{60};

/// A little less than is left until the client's deadline, so that it gets our answer and not its own.
inline std::chrono::milliseconds patience_of(const grpc::ServerContext& context) {
  using std::chrono::milliseconds;
  const auto now = std::chrono::system_clock::now();
  if (context.deadline() >= now + kPatienceMax) return kPatienceMax;
  const auto left = std::chrono::duration_cast<milliseconds>(context.deadline() - now);
  return std::max(milliseconds(0), left * 9 / 10);
}

}  // namespace fusedbun::control

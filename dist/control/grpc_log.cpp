#include "fusedbun/dist/control/grpc_log.h"

#include <grpc/support/log.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>

#include "fusedbun/dist/run_folder/standard_error.h"

namespace fusedbun::control {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::minutes kInterval{1};

void write_now_and_then(gpr_log_func_args* line) {
  static std::mutex mutex;
  static std::optional<Clock::time_point> last;
  static int64_t left_out = 0;
  const std::lock_guard lock(mutex);
  const Clock::time_point now = Clock::now();
  if (last && now - *last < kInterval) {
    ++left_out;
    return;
  }
  last = now;
  run_folder::write_to_standard_error(
      "gRPC: " + std::string(line->message) + " (at most a line a minute; left out so far: " +
      std::to_string(left_out) + "; GRPC_VERBOSITY=error shows all)\n");
}

}  // namespace

void limit_grpc_log() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function(write_now_and_then);
  });
}

}  // namespace fusedbun::control

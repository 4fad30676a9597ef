#pragma once
// A double of NCCL and the CUDA runtime: records every call in one transcript and fails where it is told to. It moves
// no data; what it tests is the order of calls and the way out of errors.
//
// Thread safety: its functions may be called by any thread. The transcript may be read and the switches that are not atomic be
// written while nothing is under way.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/nccl_api.h"

namespace fusedbun::comm::testing {

/// One at a time: the table's functions have no place for a pointer to it.
class NcclDouble {
 public:
  NcclDouble();
  ~NcclDouble();
  NcclDouble(const NcclDouble&) = delete;  // the functions find the one that lives

  const NcclApi& api() const { return api_; }

  /// The calls since the last clear, as "all_gather(count 4, f32)"; polling calls are left out.
  std::vector<std::string> calls;

  /// The next call of this entry returns this code instead of success.
  std::map<std::string, int> failures;
  /// How the transcript calls streams that the test made; all others are "own", the communicator's.
  std::map<cudaStream_t, std::string> streams;
  /// What comm_get_async_error reports.
  std::atomic<ncclResult_t> async_state = ncclSuccess;
  /// Whether operations ever end: cudaEventQuery's answer.
  std::atomic<bool> events_are_reached = true;
  /// How many operations have ended then, in the order of their launches.
  std::atomic<int64_t> operations_ended = std::numeric_limits<int64_t>::max();
  /// How long comm_abort takes.
  std::chrono::milliseconds abort_takes{0};
  /// Open NCCL communicators, streams and events, to see what leaks.
  std::atomic<int> communicators = 0;
  std::atomic<int> resources = 0;
  /// What the machine has; a count of devices that is below 0 is the CUDA error of that number.
  int device_count = 1;
  int driver_version = 13000;
  int nccl_version = 23007;

  int record(const std::string& entry, const std::string& arguments = "");
  std::string name_of(cudaStream_t stream) const;
  cudaError_t record_event(cudaEvent_t event, cudaStream_t stream);
  bool is_reached(cudaEvent_t event);

 private:
  NcclApi api_;
  std::mutex mutex_;  // of what follows, of the transcript and of `failures`
  std::map<cudaEvent_t, int64_t> operation_of_;
  int64_t operations_ = 0;
};

}  // namespace fusedbun::comm::testing

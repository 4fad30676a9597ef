#pragma once
// A double of NCCL and the CUDA runtime: records every call in one transcript and fails where it is told to. It moves
// no data; what it tests is the order of calls and the way out of errors.
#include <map>
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
  /// What comm_get_async_error reports.
  ncclResult_t async_state = ncclSuccess;
  /// Whether operations ever end: cudaEventQuery's answer.
  bool events_are_reached = true;
  /// Open NCCL communicators, streams and events, to see what leaks.
  int communicators = 0;
  int resources = 0;

  int record(const std::string& entry, const std::string& arguments = "");

 private:
  NcclApi api_;
};

}  // namespace fusedbun::comm::testing

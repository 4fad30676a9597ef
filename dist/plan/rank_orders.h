#pragma once
// RankOrders: what rank 0 can have every rank do at once, on its heartbeat's thread, so also a rank whose training thread hangs in a
// collective. The holder of the connections to the ranks implements it; dist/control gives the orders that people ask for.
//
// Thread safety: called from any thread; an implementation guards itself.
#include <cstdint>
#include <string>
#include <vector>

namespace fusedbun::plan {

class RankOrders {
 public:
  virtual ~RankOrders() = default;

  /// Each rank writes what it is doing to <folder>/rank-R.txt, a folder on its own host. Waits for all of them, at most `timeout_ms`.
  struct DumpAnswer {
    bool has_answered = false;
    std::string problem = {};  ///< why it could not write; empty: it has
  };
  virtual std::vector<DumpAnswer> dump(const std::string& folder,
                                       int64_t timeout_ms) = 0;  ///< [rank]
  /// Every process of the job ends with `code`, without a step boundary and without saving; this one last. Comes back at once.
  virtual void exit_all(int code, const std::string& reason) = 0;
};

}  // namespace fusedbun::plan

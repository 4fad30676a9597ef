#pragma once
// RowRoutes: by which messages the new rows of every rank reach every other one, so that each crosses to another host once: the line
// between hosts is the narrow place, and the ranks of a host pass on what arrived among themselves (as MPI's two-level collectives do).
//
// Thread safety: values and pure functions.
#include <vector>

namespace fusedbun::plan {

/// The rows of rank `owner`, to or from rank `peer`.
struct RowMessage {
  int peer = 0;
  int owner = 0;
  friend bool operator==(const RowMessage&, const RowMessage&) = default;
};

/// One rank's messages. Those between two ranks have the same order on both.
struct RowRoutes {
  std::vector<RowMessage> sends,
      receives;  ///< from the owner: to its own host, and to one rank of each other host
  std::vector<RowMessage> relay_sends,
      relay_receives;   ///< from that rank to the rest of its host, once it has the rows
  bool relays = false;  ///< some rank has relay messages; the same on all ranks
};

/// `hosts[r]`: the host of rank r, any numbers. Owners of a host send to different ranks of another one, so all of its ranks share the
/// work of passing on.
RowRoutes route_rows(const std::vector<int>& hosts, int rank);

}  // namespace fusedbun::plan

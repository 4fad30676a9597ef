#pragma once
// How a rank joins rank 0's heartbeats: it tries all of rank 0's addresses at the same time, and takes the first behind
// which somebody proves that he knows the token. Any other listener there is left alone.
//
// Thread safety: functions without state.
#include <chrono>
#include <string>
#include <vector>

#include "fusedbun/dist/health/connection.h"
#include "fusedbun/dist/health/proof.h"

namespace fusedbun::health {

/// How the other ranks find rank 0.
struct Rendezvous {
  std::vector<std::string> addresses = {};  ///< numbers, not names
  uint16_t port = 0;
  Token token = {};
  RankInfo rank_0 = {};
};

/// A connection on which both sides have proven themselves. Throws UnavailableError, which says of each address why not,
/// when there is none within `budget`.
Connection join(const Rendezvous& rendezvous, const RankInfo& me, std::chrono::milliseconds budget);

}  // namespace fusedbun::health

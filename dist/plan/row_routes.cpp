#include "fusedbun/dist/plan/row_routes.h"

#include <map>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {

RowRoutes route_rows(const std::vector<int>& hosts, int rank) {
  const int world_size = static_cast<int>(hosts.size());
  FUSEDBUN_ASSERT(rank >= 0 && rank < world_size, "every rank is on a host");
  std::map<int, std::vector<int>> ranks_on;
  std::vector<size_t> place_of;  // of each rank among those of its host
  for (int r = 0; r < world_size; ++r) {
    place_of.push_back(ranks_on[hosts[r]].size());
    ranks_on[hosts[r]].push_back(r);
  }
  // Who gets the rows of `owner` from it for the ranks of `host`.
  const auto first_on = [&](int host, int owner) {
    const std::vector<int>& ranks = ranks_on.at(host);
    return ranks[place_of[owner] % ranks.size()];
  };

  RowRoutes routes;
  const std::vector<int>& mates = ranks_on.at(hosts[rank]);
  for (const auto& [host, ranks] : ranks_on) {
    routes.relays |= ranks_on.size() > 1 && ranks.size() > 1;
    if (host != hosts[rank]) routes.sends.push_back({first_on(host, rank), rank});
  }
  for (const int mate : mates) {
    if (mate != rank) routes.sends.push_back({mate, rank});
  }
  for (int owner = 0; owner < world_size; ++owner) {
    if (owner == rank) continue;
    if (hosts[owner] == hosts[rank]) {
      routes.receives.push_back({owner, owner});
      continue;
    }
    const int first = first_on(hosts[rank], owner);
    if (first != rank) {
      routes.relay_receives.push_back({first, owner});
      continue;
    }
    routes.receives.push_back({owner, owner});
    for (const int mate : mates) {
      if (mate != rank) routes.relay_sends.push_back({mate, owner});
    }
  }
  return routes;
}

}  // namespace fusedbun::plan

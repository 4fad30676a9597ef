// Every rank gets every other rank's rows once, and each host gets them over one message.
#include "fusedbun/dist/plan/row_routes.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "random_model.h"

namespace fusedbun::plan {
namespace {

using Link = std::pair<int, int>;                  // from, to
using Traffic = std::map<Link, std::vector<int>>;  // the owners, in the order of the messages

struct Routed {
  Traffic direct, relayed;
};

/// What all ranks send; what each receives must be that.
Routed routed(const std::vector<int>& hosts) {
  Traffic sent[2], received[2];
  for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
    const RowRoutes routes = route_rows(hosts, rank);
    for (const auto& [peer, owner] : routes.sends) sent[0][{rank, peer}].push_back(owner);
    for (const auto& [peer, owner] : routes.receives) received[0][{peer, rank}].push_back(owner);
    for (const auto& [peer, owner] : routes.relay_sends) sent[1][{rank, peer}].push_back(owner);
    for (const auto& [peer, owner] : routes.relay_receives)
      received[1][{peer, rank}].push_back(owner);
  }
  EXPECT_EQ(sent[0], received[0]);
  EXPECT_EQ(sent[1], received[1]);
  return {sent[0], sent[1]};
}

TEST(RowRoutes, BringEachRowToEachRankOnceAndToEachHostOnce) {
  Random random(test_seed());
  for (int k = 0; k < 500; ++k) {
    std::vector<int> hosts(static_cast<size_t>(between(random, 1, 12)));
    const int64_t host_count = between(random, 1, 5);
    for (int& host : hosts) host = static_cast<int>(between(random, 0, host_count - 1));
    const Routed traffic = routed(hosts);

    std::map<Link, int> arrivals;                  // [owner, rank]
    std::map<std::pair<int, int>, int> crossings;  // [owner, host]
    std::set<Link> here;                           // [rank, owner] after the first messages
    for (const auto& [link, owners] : traffic.direct) {
      for (const int owner : owners) {
        EXPECT_EQ(owner, link.first) << "only owners have rows to begin with";
        ++arrivals[{owner, link.second}];
        here.insert({link.second, owner});
        if (hosts[link.first] != hosts[link.second]) ++crossings[{owner, hosts[link.second]}];
      }
    }
    for (const auto& [link, owners] : traffic.relayed) {
      EXPECT_EQ(hosts[link.first], hosts[link.second]);
      for (const int owner : owners) {
        EXPECT_TRUE(here.contains({link.first, owner})) << "it has no such rows to pass on";
        ++arrivals[{owner, link.second}];
      }
    }
    for (int owner = 0; owner < static_cast<int>(hosts.size()); ++owner) {
      for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank) {
        EXPECT_EQ((arrivals[{owner, rank}]), owner == rank ? 0 : 1);
      }
    }
    for (const auto& [link, times] : crossings) EXPECT_EQ(times, 1);
    for (int rank = 0; rank < static_cast<int>(hosts.size()); ++rank)
      EXPECT_EQ(route_rows(hosts, rank).relays, !traffic.relayed.empty());
  }
}

TEST(RowRoutes, DivideWhatIsPassedOnAmongTheRanksOfAHost) {
  const Routed traffic = routed({0, 0, 1, 1});
  EXPECT_EQ(traffic.direct, (Traffic{{{0, 1}, {0}},
                                     {{1, 0}, {1}},
                                     {{2, 3}, {2}},
                                     {{3, 2}, {3}},
                                     {{0, 2}, {0}},
                                     {{1, 3}, {1}},
                                     {{2, 0}, {2}},
                                     {{3, 1}, {3}}}));
  EXPECT_EQ(traffic.relayed, (Traffic{{{2, 3}, {0}}, {{3, 2}, {1}}, {{0, 1}, {2}}, {{1, 0}, {3}}}));
}

TEST(RowRoutes, RelayNothingOnOneHostAndBetweenHostsOfOneRank) {
  EXPECT_TRUE(routed({7, 7, 7}).relayed.empty());
  EXPECT_TRUE(routed({2, 0, 1}).relayed.empty());
}

}  // namespace
}  // namespace fusedbun::plan

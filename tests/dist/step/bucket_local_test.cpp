// The three buckets over ranks that are threads of one process.
#include "bucket_conformance.h"
#include "fusedbun/dist/comm/local.h"

namespace fusedbun::testing {
namespace {

using comm::testing::ThreadWorld;
using comm::testing::WorldFactory;

std::vector<WorldFactory> local_worlds() {
  std::vector<WorldFactory> worlds;
  for (const int size : {1, 2, 3, 4}) {
    worlds.push_back({"local" + std::to_string(size), [size](std::chrono::milliseconds timeout) {
                        auto ranks = comm::make_local_communicators(size, timeout);
                        return std::make_unique<ThreadWorld>(
                            size, [&](int rank) { return std::move(ranks[rank]); });
                      }});
  }
  return worlds;
}

INSTANTIATE_TEST_SUITE_P(Local, BucketConformance, on_all_buckets(local_worlds()),
                         bucket_test_name);

}  // namespace
}  // namespace fusedbun::testing

// The three buckets over Gloo, ranks as threads.
#include "bucket_conformance.h"
#include "fusedbun/dist/comm/gloo.h"

namespace fusedbun::testing {
namespace {

using comm::testing::ThreadWorld;
using comm::testing::WorldFactory;

std::unique_ptr<comm::testing::World> make_gloo_world(int size, std::chrono::milliseconds timeout) {
  const auto store = comm::serve_store("127.0.0.1", 0);
  return std::make_unique<ThreadWorld>(size, [&](int rank) {
    return comm::connect_gloo({.rank = rank,
                               .size = size,
                               .master_port = store->port(),
                               .serve_store = false,
                               .timeout = timeout});
  });
}

std::vector<WorldFactory> gloo_worlds() {
  std::vector<WorldFactory> worlds;
  for (const int size : {1, 2, 3, 4}) {
    worlds.push_back({"gloo" + std::to_string(size), [size](std::chrono::milliseconds timeout) {
                        return make_gloo_world(size, timeout);
                      }});
  }
  return worlds;
}

INSTANTIATE_TEST_SUITE_P(Gloo, BucketConformance, on_all_buckets(gloo_worlds()), bucket_test_name);

}  // namespace
}  // namespace fusedbun::testing

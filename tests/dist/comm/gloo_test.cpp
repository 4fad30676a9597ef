#include "fusedbun/dist/comm/gloo.h"

#include "conformance.h"
#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

std::unique_ptr<World> make_gloo_world(int size, std::chrono::milliseconds timeout) {
  const auto store = serve_store("127.0.0.1", 0);
  return std::make_unique<ThreadWorld>(size, [&](int rank) {
    return connect_gloo({.rank = rank,
                         .size = size,
                         .master_port = store->port(),
                         .serve_store = false,
                         .timeout = timeout});
  });
}

std::vector<WorldFactory> gloo_worlds(const std::vector<int>& sizes) {
  std::vector<WorldFactory> factories;
  for (const int size : sizes) {
    factories.push_back({"gloo" + std::to_string(size), [size](std::chrono::milliseconds timeout) {
                           return make_gloo_world(size, timeout);
                         }});
  }
  return factories;
}

const auto kName = [](const auto& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(Gloo, Conformance, ::testing::ValuesIn(gloo_worlds({1, 2, 3, 4})), kName);
INSTANTIATE_TEST_SUITE_P(Gloo, Breakage, ::testing::ValuesIn(gloo_worlds({2, 3})), kName);

}  // namespace
}  // namespace fusedbun::comm::testing

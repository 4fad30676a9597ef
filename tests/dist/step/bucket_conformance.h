#pragma once
// The conformance suite of the gradient buckets: what gradient_bucket.h promises, run on each of the three buckets over the worlds of
// each backend's test binary. Expected values come from loops over single elements.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "fusedbun/dist/plan/transport_choice.h"
#include "world.h"

namespace fusedbun::testing {

class BucketConformance : public ::testing::TestWithParam<
                              std::tuple<comm::testing::WorldFactory, plan::GradientTransport>> {
 protected:
  void SetUp() override {
    world_ = std::get<0>(GetParam()).make(std::chrono::seconds(20));
    transport_ = std::get<1>(GetParam());
  }

  std::unique_ptr<comm::testing::World> world_;
  plan::GradientTransport transport_{};
};

/// "local3_collective", for INSTANTIATE_TEST_SUITE_P.
std::string bucket_test_name(const ::testing::TestParamInfo<BucketConformance::ParamType>& info);

/// The three buckets over each of these worlds.
inline auto on_all_buckets(const std::vector<comm::testing::WorldFactory>& worlds) {
  using enum plan::GradientTransport;
  return ::testing::Combine(::testing::ValuesIn(worlds),
                            ::testing::Values(collective, point_to_point, shared_memory));
}

}  // namespace fusedbun::testing

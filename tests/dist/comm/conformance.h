#pragma once
// The conformance suite: what every backend promises in communicator.h, run by each backend's test binary over worlds
// of several sizes. Conformance (conformance.cpp) holds while nothing fails; Breakage (breakage.cpp) is what happens
// when something does.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "world.h"

namespace fusedbun::comm::testing {

class Conformance : public ::testing::TestWithParam<WorldFactory> {
 protected:
  void SetUp() override {
    if (!GetParam().problem.empty()) GTEST_SKIP() << GetParam().problem;
    world_ = GetParam().make(std::chrono::seconds(30));
  }
  World& world() { return *world_; }

 private:
  std::unique_ptr<World> world_;
};

/// Worlds of at least two ranks that a test may break.
class Breakage : public ::testing::TestWithParam<WorldFactory> {
 protected:
  void SetUp() override {
    if (!GetParam().problem.empty()) GTEST_SKIP() << GetParam().problem;
  }
};

}  // namespace fusedbun::comm::testing

#pragma once
// The conformance suite: what every backend promises in communicator.h, run by each backend's test binary over worlds of
// several sizes. Conformance holds while nothing fails; Breakage is what happens when something does.
#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "world.h"

namespace fusedbun::comm::testing {

class Conformance : public ::testing::TestWithParam<WorldFactory> {
 protected:
  void SetUp() override { world_ = GetParam().make(std::chrono::seconds(30)); }
  World& world() { return *world_; }

 private:
  std::unique_ptr<World> world_;
};

/// Worlds of at least two ranks that a test may break.
class Breakage : public ::testing::TestWithParam<WorldFactory> {};

/// What rank `rank` contributes as element `index` of an operation. Floating-point values differ so much in size that
/// their sum depends on the order; with `exact`, small integers whose sum does not.
template <class T>
T contribution(int rank, int64_t index, bool exact);

}  // namespace fusedbun::comm::testing

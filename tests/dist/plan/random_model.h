#pragma once
// Random models for the property tests of dist/plan, and the seed that replays them.
//
// Thread safety: none needed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {

/// The seed of one random test: FUSEDBUN_TEST_SEED if set, else a fresh one. Printed, so that a failure can be replayed.
inline uint64_t test_seed() {
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "seed " << seed << " (replay: FUSEDBUN_TEST_SEED=" << seed << ")\n";
  return seed;
}

using Random = std::mt19937_64;

/// Evenly from [min, max].
inline int64_t between(Random& random, int64_t min, int64_t max) {
  return std::uniform_int_distribution<int64_t>(min, max)(random);
}

inline bool chance(Random& random, double probability) {
  return std::bernoulli_distribution(probability)(random);
}

/// One parameter of 0 to 4 dimensions: mostly small, now and then empty or long.
inline ParameterSpec random_parameter(Random& random, const std::string& name) {
  ParameterSpec parameter;
  parameter.name = name;
  for (int64_t dimensions = between(random, 0, 4); dimensions > 0; --dimensions) {
    parameter.shape.push_back(chance(random, 0.03) ? 0 : between(random, 1, 7));
  }
  if (!parameter.shape.empty() && chance(random, 0.4)) parameter.shape[0] = between(random, 1, 60);
  parameter.type = static_cast<ElementType>(chance(random, 0.6) ? 0 : between(random, 0, 3));
  parameter.group = static_cast<int>(between(random, 0, 2));
  if (chance(random, 0.3)) parameter.matrix_view = MatrixView::last_two;
  return parameter;
}

inline std::vector<ParameterSpec> random_model(Random& random, const std::string& prefix,
                                               int64_t count_max) {
  std::vector<ParameterSpec> model;
  const int64_t count = between(random, 0, count_max);
  for (int64_t i = 0; i < count; ++i) {
    model.push_back(random_parameter(random, prefix + std::to_string(i)));
  }
  return model;
}

inline PlanOptions random_plan_options(Random& random) {
  return {.world_size = static_cast<int>(between(random, 1, 9)),
          .min_rows_per_rank = between(random, 1, 5),
          .bucket_bytes = between(random, 1, chance(random, 0.5) ? 600 : 6000)};
}

}  // namespace fusedbun::plan

// Every golden case through the reference and, where its options have one, the fused CPU step, in one process.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "fusedbun/core/fusedbun.h"
#include "fusedbun/tests/support/golden_cases.h"

namespace fusedbun {
namespace {

using golden::Case;
using golden::Precision;

struct Count {
  int reference = 0;
  int fused = 0;
};

TEST(Golden, EveryCaseThroughReferenceAndFusedStep) {
  const std::vector<Case> cases = golden::read_cases(golden::directory());
  std::map<Precision, Count> counts;
  for (const Case& golden : cases) {
    for (const auto& [precision, expected] : golden.expected) {
      const StepPath path = step_path(golden.options, at::kCPU, golden::scalar_type(precision));
      if (path == StepPath::fused_cpu) {
        ++counts[precision].fused;
        const auto wrong = golden::run_fusedbun(golden, precision);
        EXPECT_FALSE(wrong) << "fused step: " << *wrong;
      }
      const ForceReference reference;
      ASSERT_EQ(step_path(golden.options, at::kCPU, golden::scalar_type(precision)),
                StepPath::reference);
      ++counts[precision].reference;
      const auto wrong = golden::run_fusedbun(golden, precision);
      EXPECT_FALSE(wrong) << "reference: " << *wrong;
    }
  }
  std::printf(
      "golden: %zu cases from %s; float64: %d reference, %d fused; float32: %d reference, %d "
      "fused\n",
      cases.size(), golden::directory().c_str(), counts[Precision::f64].reference,
      counts[Precision::f64].fused, counts[Precision::f32].reference, counts[Precision::f32].fused);
  EXPECT_GT(counts[Precision::f64].fused, 0) << "no case took the fused step";
}

// The comparer must notice what it is there for.
TEST(Golden, ComparerSeesADifferentElement) {
  const Case golden = golden::read_cases(golden::directory()).front();
  std::vector<torch::Tensor> parameters;
  const auto& expected = golden.expected.at(Precision::f64).parameters.begin();
  for (size_t k = 0; k < golden.parameters.size(); ++k) {
    parameters.push_back(at::tensor(expected->second[k], at::kDouble));
  }
  EXPECT_FALSE(golden::compare_parameters(golden, Precision::f64, expected->first, parameters));
  parameters.back()[0] += 1e-9;
  EXPECT_TRUE(golden::compare_parameters(golden, Precision::f64, expected->first, parameters));
}

}  // namespace
}  // namespace fusedbun

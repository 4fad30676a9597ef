// Every golden case sharded over 2 and 3 ranks, through the reference and, where its options have one, the fused CPU step.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>

#include "fusedbun/tests/support/golden_cases.h"
#include "local_ranks.h"
#include "random_model.h"

namespace fusedbun {
namespace {

using golden::Case;
using golden::Precision;

torch::OrderedDict<std::string, torch::Tensor> model_of(const Case& golden, Precision precision) {
  std::vector<at::Tensor> initial;
  for (size_t k = 0; k < golden.parameters.size(); ++k) {
    initial.push_back(golden.initial(static_cast<int>(k), precision));
  }
  return testing::as_model(initial);
}

// One rank's run; returns whether its plan splits a matrix. In step s rank s mod W has the gradients and the others zeros,
// so the sum is exact.
bool run_rank(const Case& golden, Precision precision, comm::Communicator& communicator) {
  auto model = model_of(golden, precision);
  ShardedFusedbun optimizer({&communicator, &communicator}, model, FusedbunOptions(golden.options),
                            {.min_rows_per_rank = 1,
                             .in_place_bytes = 64,
                             .gradient_divisor = 1.0,
                             .host_window = communicator.size() == 2});
  for (int step = 1; step <= golden.steps; ++step) {
    const bool mine = step % communicator.size() == communicator.rank();
    for (size_t k = 0; k < model.size(); ++k) {
      const int index = static_cast<int>(k);
      const at::Tensor gradient = golden.gradient(step, index, precision);
      model[k].value().mutable_grad() = mine ? gradient : at::zeros_like(gradient);
      const at::Tensor diagonal = golden.hessian_diagonal(step, index, precision);
      if (diagonal.defined()) optimizer.set_hessian_diagonal(model[k].value(), diagonal);
    }
    optimizer.step();
    const auto wrong =
        golden::compare_parameters(golden, precision, step, testing::values_of(model));
    EXPECT_FALSE(wrong) << "rank " << communicator.rank() << " of " << communicator.size() << ": "
                        << *wrong;
  }
  for (const auto& owned : optimizer.owned_rows()) {
    const int k = std::stoi(owned.name.substr(1));
    const auto wrong = golden::compare_state(golden, precision, k, owned.range, *owned.state);
    EXPECT_FALSE(wrong) << "rank " << communicator.rank() << " of " << communicator.size() << ": "
                        << *wrong;
  }
  optimizer.finish();
  return std::ranges::count(optimizer.shard_plan().slices, plan::SliceKind::row_sharded) > 0;
}

TEST(ShardedGolden, EveryCaseOverTwoAndThreeRanks) {
  const std::vector<Case> cases = golden::read_cases(golden::directory());
  for (const int world_size : {2, 3}) {
    std::map<std::string, int> counts;
    std::atomic<int> split = 0;
    for (const Case& golden : cases) {
      for (const auto& [precision, expected] : golden.expected) {
        const std::string name = precision == Precision::f64 ? "f64" : "f32";
        const auto run = [&, precision = precision](const std::string& path) {
          ++counts[name + " " + path];
          testing::run_ranks(world_size, [&](comm::Communicator& communicator) {
            const bool has_split = run_rank(golden, precision, communicator);
            if (communicator.rank() == 0) split += has_split;
          });
        };
        const at::ScalarType type = golden::scalar_type(precision);
        if (step_path(golden.options, at::kCPU, type) == StepPath::fused_cpu) run("fused");
        const ForceReference reference;
        run("reference");
      }
    }
    EXPECT_GT(split, 0) << "no plan splits a matrix: the sharded path was not seen";
    std::printf("%zu golden cases over %d ranks, %d runs with a split matrix:", cases.size(),
                world_size, split.load());
    for (const auto& [what, count] : counts) std::printf("  %s %d", what.c_str(), count);
    std::printf("\n");
  }
}

}  // namespace
}  // namespace fusedbun

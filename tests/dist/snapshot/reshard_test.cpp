// What N ranks saved, M ranks load, not a bit different, for every N and M from 1 to 8.
#include <gtest/gtest.h>

#include <atomic>

#include "fusedbun/dist/snapshot/checkpointer.h"
#include "local_ranks.h"
#include "random_model.h"
#include "scratch_folder.h"
#include "whole_state.h"

namespace fusedbun {
namespace {

using testing::WholeState;

constexpr int kRanksMax = 8;

struct Layout {
  const char* name;
  std::vector<std::vector<int64_t>> shapes;
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all{
      {"every row count divides", {{16, 8}, {24, 4}, {16}, {8, 2, 3}}},
      {"seven parameters of all kinds", {{33, 5}, {7, 3}, {1, 9}, {9, 1}, {13}, {}, {4, 2, 3, 5}}},
      {"one larger than all others together", {{257, 17}, {3, 2}, {5}}}};
  return all;
}

struct Case {
  std::string preset;
  at::ScalarType type;
  size_t layout;
  MatrixView view = MatrixView::leading;
  LowPrecision low_precision = LowPrecision::master;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.preset << " in " << c10::toString(c.type) << ", " << layouts()[c.layout].name
       << ", matrices " << name_of(c.view);
}

FusedbunOptions options_of(const Case& c) {
  return FusedbunOptions::of_preset(c.preset, 1e-2)
      .use_rms(true)
      .matrix_view(c.view)
      .low_precision(c.low_precision);
}

/// Small buckets, so that the larger parameters are spread over several.
ShardedOptions sharded_options(bool host_window) {
  ShardedOptions options;
  options.min_rows_per_rank = 2;
  options.bucket_bytes = 1 << 10;
  options.host_window = host_window;
  return options;
}

class Reshard : public ::testing::TestWithParam<Case> {};

TEST_P(Reshard, AnyNumberOfRanksLoadsWhatAnyOtherSaved) {
  const Case& c = GetParam();
  const auto& shapes = layouts()[c.layout].shapes;
  const uint64_t seed = testing::seed_from_environment(20261127);
  const auto parameters = testing::random_parameters(shapes, c.type, seed);
  for (int saved_by = 1; saved_by <= kRanksMax; ++saved_by) {
    const support::ScratchFolder scratch;
    WholeState whole;
    testing::run_ranks(saved_by, [&](comm::Communicator& ranks) {
      auto model = testing::as_model(parameters);
      ShardedFusedbun optimizer({&ranks, &ranks}, model, options_of(c),
                                sharded_options(saved_by % 2 == 0));
      const auto gradients = testing::random_gradients(shapes, c.type, 3, /*with_unused=*/true,
                                                       seed + static_cast<uint64_t>(ranks.rank()));
      for (const auto& step : gradients) {
        for (size_t p = 0; p < step.size(); ++p) model[p].value().mutable_grad() = step[p];
        optimizer.step();
      }
      Checkpointer checkpointer(ranks, {.folder = scratch / "checkpoints"});
      ASSERT_EQ(checkpointer.save({.optimizer = &optimizer}), SaveStart::started);
      ASSERT_TRUE(checkpointer.wait());
      ASSERT_EQ(checkpointer.status().last_failure, "");
      whole.lay_in(optimizer);
    });
    for (int loaded_by = 1; loaded_by <= kRanksMax; ++loaded_by) {
      SCOPED_TRACE(std::to_string(saved_by) + " ranks saved, " + std::to_string(loaded_by) +
                   " load, FUSEDBUN_TEST_SEED=" + std::to_string(seed));
      testing::run_ranks(loaded_by, [&](comm::Communicator& ranks) {
        auto model = testing::as_model(testing::random_parameters(shapes, c.type, seed + 99));
        ShardedFusedbun optimizer({&ranks, &ranks}, model, options_of(c),
                                  sharded_options((saved_by + loaded_by) % 2 == 0));
        Checkpointer checkpointer(ranks, {.folder = scratch / "checkpoints"});
        const auto loaded = checkpointer.load({.optimizer = &optimizer});
        ASSERT_TRUE(loaded.has_value());
        EXPECT_EQ(loaded->job_step, 3);
        EXPECT_EQ(loaded->world_size, saved_by);
        EXPECT_EQ(optimizer.job_step(), 3);
        EXPECT_EQ(whole.difference(optimizer), "");
        // Every rank has every parameter, not only the rows that it owns.
        for (size_t p = 0; p < model.size(); ++p) {
          EXPECT_TRUE(whole.has_values(model[p].key(), model[p].value().detach()));
        }
      });
    }
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (size_t layout = 0; layout < layouts().size(); ++layout) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      all.push_back({"recommended", type, layout});
    }
  }
  // Every preset, and stacks, once.
  for (const std::string& preset : preset_names()) {
    if (preset != "recommended") all.push_back({preset, at::kBFloat16, 1});
  }
  for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic})
    all.push_back({"recommended", at::kBFloat16, 1, MatrixView::leading, kept});
  all.push_back({"recommended", at::kFloat, 1, MatrixView::last_two});
  all.push_back({"sm3", at::kDouble, 1, MatrixView::last_two});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Presets, Reshard, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return "case" + std::to_string(info.index); });

}  // namespace
}  // namespace fusedbun

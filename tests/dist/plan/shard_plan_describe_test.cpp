// The plan in words. The transcript of GPT-2 small is kept as text; FUSEDBUN_REGENERATE=1 writes it anew, and the
// difference is committed only if it is understood.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun::plan {
namespace {

using testing::HasSubstr;
using testing::Not;

/// GPT-2 small with linear weights [out, in]; the output layer is tied to wte.
std::vector<ParameterSpec> gpt2_small() {
  constexpr int64_t kWidth = 768;
  std::vector<ParameterSpec> parameters = {{"wte.weight", {50257, kWidth}},
                                           {"wpe.weight", {1024, kWidth}}};
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    parameters.push_back({name + ".weight", {out, in}});
    parameters.push_back({name + ".bias", {out}});
  };
  const auto norm = [&](const std::string& name) {
    parameters.push_back({name + ".weight", {kWidth}});
    parameters.push_back({name + ".bias", {kWidth}});
  };
  for (int layer = 0; layer < 12; ++layer) {
    const std::string prefix = "h." + std::to_string(layer) + ".";
    norm(prefix + "ln_1");
    linear(prefix + "attn.c_attn", 3 * kWidth, kWidth);
    linear(prefix + "attn.c_proj", kWidth, kWidth);
    norm(prefix + "ln_2");
    linear(prefix + "mlp.c_fc", 4 * kWidth, kWidth);
    linear(prefix + "mlp.c_proj", kWidth, 4 * kWidth);
  }
  norm("ln_f");
  return parameters;
}

TEST(ShardPlanDescribe, Gpt2SmallOnFourRanksAsKept) {
  const std::string path = FUSEDBUN_PLAN_TESTDATA "/gpt2_small_4_ranks.txt";
  const std::string described = make_plan(gpt2_small(), {.world_size = 4}).describe();
  if (std::getenv("FUSEDBUN_REGENERATE")) std::ofstream(path) << described;
  std::ostringstream kept;
  kept << std::ifstream(path).rdbuf();
  EXPECT_EQ(described, kept.str());
}

TEST(ShardPlanDescribe, NamesWhoOwnsWhatAndWhy) {
  const std::string text =
      make_plan(
          std::vector<ParameterSpec>{
              {"split", {50, 4}}, {"small", {2, 4}}, {"bias", {7}}, {"none", {0, 4}}},
          {.world_size = 4})
          .describe();
  EXPECT_THAT(text, HasSubstr("4 parameters, 215 elements, 4 ranks, 1 bucket closed at 25.0 MiB"));
  EXPECT_THAT(text, HasSubstr("split  13 rows on ranks 0-1, 12 on ranks 2-3 (50 rows >= 4 x 4)"));
  EXPECT_THAT(text, HasSubstr("whole  rank 3, the least loaded (2 rows < 4 x 4)"));
  EXPECT_THAT(text, HasSubstr("pack   ranks 0-3 (a vector is cut anywhere)"));
  EXPECT_THAT(text, HasSubstr("in no slice (no elements): none [0, 4] f32 group 0"));
  EXPECT_THAT(text, HasSubstr("rank 2: 50 (-6.977 % against the average)"));
}

TEST(ShardPlanDescribe, SaysHowStacksLieOnRanks) {
  std::vector<ParameterSpec> parameters = {{"experts", {6, 8, 4}}, {"qkv", {3, 8, 4}}};
  for (ParameterSpec& parameter : parameters) parameter.matrix_view = MatrixView::last_two;
  const std::string text = make_plan(parameters, {.world_size = 4}).describe();
  EXPECT_THAT(text, HasSubstr("stack  2 matrices on ranks 0-1, 1 matrix on ranks 2-3 (6 matrices "
                              "of 8 rows, never cut)"));
  // Ranks 2 and 3 have less, and of the others rank 0 is the first.
  EXPECT_THAT(text,
              HasSubstr("stack  1 matrix each on the least loaded of ranks 0-3 (3 matrices of "
                        "8 rows, fewer than ranks)"));
}

TEST(MatrixViewAdvice, NamesStacksThatAreSeenAsOneMatrix) {
  const auto advice = [](std::vector<int64_t> shape, MatrixView view = MatrixView::leading) {
    ParameterSpec spec{"experts.w", std::move(shape)};
    spec.matrix_view = view;
    return matrix_view_advice(std::vector<ParameterSpec>{spec});
  };
  EXPECT_EQ(advice({8, 512, 2048}),
            "1 parameter such as experts.w [8, 512, 2048] looks like a stack of matrices, seen as "
            "one of 8 rows and 1048576 columns: matrix_view = last_two in a group of their own "
            "gives each matrix statistics of its own");
  EXPECT_TRUE(advice({3, 12, 64, 768}).has_value());
  EXPECT_EQ(advice({8, 512, 2048}, MatrixView::last_two), std::nullopt);
  EXPECT_EQ(advice({64, 3, 7, 7}), std::nullopt);     // a convolution
  EXPECT_EQ(advice({512, 512, 3, 3}), std::nullopt);  // a convolution
  EXPECT_EQ(advice({8, 1048576}), std::nullopt);      // a matrix is what it is
  EXPECT_EQ(advice({4096, 32, 128}), std::nullopt);   // an output projection by heads
}

TEST(ShardPlanDescribe, WarnsAboveTwoPercentOnly) {
  // 51 rows on 2 ranks: 26 against 25.5 on average is 1.96 %; of 49 rows, 25 against 24.5 is 2.04 %.
  const auto rows = [](int64_t n) {
    return make_plan(std::vector<ParameterSpec>{{"w", {n, 10}}}, {.world_size = 2});
  };
  EXPECT_EQ(rows(51).warning(), std::nullopt);
  EXPECT_THAT(rows(51).describe(), Not(HasSubstr("warning")));
  ASSERT_TRUE(rows(49).warning().has_value());
  EXPECT_THAT(rows(49).describe(), HasSubstr("warning: " + *rows(49).warning()));
}

TEST(ShardPlanDescribe, ProposesTheLargestSmallerWorldAndMinRows) {
  // 12 rows on 4 ranks need 16 to be split at 4 rows per rank: one rank has all.
  const auto warning =
      make_plan(std::vector<ParameterSpec>{{"w", {12, 10}}}, {.world_size = 4}).warning();
  EXPECT_EQ(
      warning,
      "rank 0 owns 300.0 % more elements than the average of 4 ranks; 3 ranks would be uneven "
      "by 0.0 %; min_rows_per_rank 2 would be uneven by 0.0 %");
  const auto hopeless =
      make_plan(std::vector<ParameterSpec>{{"w", {1, 10}}}, {.world_size = 4}).warning();
  EXPECT_EQ(hopeless,
            "rank 0 owns 300.0 % more elements than the average of 4 ranks; no smaller world or "
            "min_rows_per_rank is within 2 %");
}

}  // namespace
}  // namespace fusedbun::plan

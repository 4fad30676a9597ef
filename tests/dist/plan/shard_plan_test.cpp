// Single facts of the plan; the properties are in shard_plan_random_test.cpp.
#include "fusedbun/dist/plan/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> rows_per_rank(const ShardPlan& plan, int parameter) {
  std::vector<int64_t> rows(plan.options.world_size);
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    for (const OwnedRange& owned : owned_ranges(plan, rank)) {
      if (owned.parameter == parameter) rows[rank] += owned.range.rows();
    }
  }
  return rows;
}

std::string error_of(const std::vector<ParameterSpec>& parameters, const PlanOptions& options) {
  try {
    make_plan(parameters, options);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ParameterSpec, IsSeenAsRowsAndColumns) {
  const ParameterSpec scalar{"s", {}}, vector{"v", {5}}, tensor{"t", {4, 3, 2}}, empty{"e", {3, 0}};
  EXPECT_TRUE(scalar.is_vector());
  EXPECT_TRUE(vector.is_vector());
  EXPECT_FALSE(tensor.is_vector());
  EXPECT_EQ(scalar.rows(), 1);
  EXPECT_EQ(scalar.columns(), 1);
  EXPECT_EQ(vector.rows(), 5);
  EXPECT_EQ(vector.columns(), 1);
  EXPECT_EQ(tensor.rows(), 4);
  EXPECT_EQ(tensor.columns(), 6);
  EXPECT_EQ(tensor.elements(), 24);
  EXPECT_EQ(empty.elements(), 0);
}

TEST(ParameterSpec, IsAStackOfItsLastTwoDimensionsIfAsked) {
  ParameterSpec stack{"t", {5, 4, 3, 2}}, matrix{"m", {4, 3}}, vector{"v", {5}};
  for (ParameterSpec* spec : {&stack, &matrix, &vector}) spec->matrix_view = MatrixView::last_two;
  EXPECT_EQ(stack.rows(), 60);
  EXPECT_EQ(stack.columns(), 2);
  EXPECT_EQ(stack.stacked_matrices(), 20);
  EXPECT_EQ(stack.all_rows().rows_per_matrix(), 3);
  EXPECT_EQ(matrix.rows(), 4);
  EXPECT_EQ(matrix.stacked_matrices(), 0);
  EXPECT_EQ(matrix.all_rows().matrix_rows, 0);
  EXPECT_TRUE(vector.is_vector());
  EXPECT_EQ(vector.rows(), 5);
  EXPECT_EQ(line_of(stack), "t [5, 4, 3, 2] f32 group 0 last_two");
  EXPECT_EQ(line_of(matrix), "m [4, 3] f32 group 0");
}

TEST(ParameterSpec, KnowsBytesAndNamesOfTypes) {
  EXPECT_EQ(bytes_of(ElementType::bf16), 2);
  EXPECT_EQ(bytes_of(ElementType::f16), 2);
  EXPECT_EQ(bytes_of(ElementType::f32), 4);
  EXPECT_EQ(bytes_of(ElementType::f64), 8);
  EXPECT_EQ(arithmetic_bytes_of(ElementType::bf16), 4);
  EXPECT_EQ(arithmetic_bytes_of(ElementType::f16), 4);
  EXPECT_EQ(arithmetic_bytes_of(ElementType::f64), 8);
  EXPECT_EQ(line_of({"h.0.weight", {512, 128}, ElementType::bf16, 1}),
            "h.0.weight [512, 128] bf16 group 1");
}

TEST(ShardPlan, SplitsFromMinRowsTimesRanksOn) {
  const ShardPlan plan = make_plan(std::vector<ParameterSpec>{{"at", {8, 3}}, {"below", {7, 3}}},
                                   {.world_size = 2, .min_rows_per_rank = 4});
  EXPECT_EQ(plan.slices[0], SliceKind::row_sharded);
  EXPECT_EQ(plan.slices[1], SliceKind::single_owner);
}

TEST(ShardPlan, GivesTheFirstRanksTheLongerSegments) {
  const ShardPlan plan = make_plan(std::vector<ParameterSpec>{{"w", {11, 2}}},
                                   {.world_size = 4, .min_rows_per_rank = 1});
  EXPECT_THAT(rows_per_rank(plan, 0), ElementsAre(3, 3, 3, 2));
  EXPECT_THAT(plan.buckets[0].counts, ElementsAre(6, 6, 6, 4));
  EXPECT_THAT(plan.buckets[0].offsets, ElementsAre(0, 6, 12, 18));
}

TEST(ShardPlan, GivesWholeMatricesToTheLeastLoadedLargestFirst) {
  // 6, 5, 4 and 3 elements in order of registration's reverse: 3, 4, 5, 6 would end at 8 and 10.
  const ShardPlan plan = make_plan(
      std::vector<ParameterSpec>{{"a", {1, 6}}, {"b", {1, 5}}, {"c", {1, 4}}, {"d", {1, 3}}},
      {.world_size = 2});
  EXPECT_THAT(rows_per_rank(plan, 0), ElementsAre(1, 0));
  EXPECT_THAT(rows_per_rank(plan, 1), ElementsAre(0, 1));
  EXPECT_THAT(rows_per_rank(plan, 2), ElementsAre(0, 1));
  EXPECT_THAT(rows_per_rank(plan, 3), ElementsAre(1, 0));
  EXPECT_THAT(plan.load, ElementsAre(9, 9));
}

TEST(ShardPlan, CutsTheVectorsOfABucketAnywhere) {
  // End to end in reverse order of registration: c c c c c b a a; ranks take 3, 3 and 2 elements.
  const ShardPlan plan =
      make_plan(std::vector<ParameterSpec>{{"a", {2}}, {"b", {}}, {"c", {5}}}, {.world_size = 3});
  EXPECT_THAT(rows_per_rank(plan, 2), ElementsAre(3, 2, 0));
  EXPECT_THAT(rows_per_rank(plan, 1), ElementsAre(0, 1, 0));
  EXPECT_THAT(rows_per_rank(plan, 0), ElementsAre(0, 0, 2));
}

TEST(ShardPlan, PacksEachGroupForItself) {
  const ShardPlan plan = make_plan(
      std::vector<ParameterSpec>{{"a", {4}, ElementType::f32, 0}, {"b", {4}, ElementType::f32, 1}},
      {.world_size = 2});
  ASSERT_EQ(plan.buckets.size(), 1u);
  EXPECT_THAT(rows_per_rank(plan, 0), ElementsAre(2, 2));
  EXPECT_THAT(rows_per_rank(plan, 1), ElementsAre(2, 2));
}

TEST(ShardPlan, ClosesABucketWhenItsGradientsReachTheLimit) {
  // 40 bytes each in float32; bfloat16 gradients travel as float32 too.
  for (ElementType type : {ElementType::f32, ElementType::bf16}) {
    std::vector<ParameterSpec> parameters;
    for (int i = 0; i < 5; ++i) parameters.push_back({std::to_string(i), {10}, type});
    const ShardPlan plan = make_plan(parameters, {.world_size = 1, .bucket_bytes = 80});
    ASSERT_EQ(plan.buckets.size(), 3u);
    EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(4, 3));
    EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(2, 1));
    EXPECT_THAT(plan.buckets[2].parameters, ElementsAre(0));
  }
}

TEST(ShardPlan, KeepsTypesApartWithoutClosingAtEachChange) {
  const auto f32 = ElementType::f32, f64 = ElementType::f64;
  const ShardPlan plan = make_plan(
      std::vector<ParameterSpec>{
          {"0", {2}, f32}, {"1", {2}, f64}, {"2", {2}, f32}, {"3", {2}, f64}},
      {.world_size = 1});
  ASSERT_EQ(plan.buckets.size(), 2u);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(3, 1));  // complete before parameter 0 is
  EXPECT_EQ(plan.buckets[0].type, f64);
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(2, 0));
}

TEST(ShardPlan, SpreadsALargeMatrixOverBuckets) {
  // 1,600 bytes in buckets of 500: three parts, behind the vector that was registered after it.
  const ShardPlan plan =
      make_plan(std::vector<ParameterSpec>{{"first", {3}}, {"large", {50, 8}}, {"bias", {5}}},
                {.world_size = 2, .bucket_bytes = 500});
  ASSERT_EQ(plan.buckets.size(), 4u);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(2, 1));
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(1));
  EXPECT_THAT(plan.buckets[2].parameters, ElementsAre(1));
  EXPECT_THAT(plan.buckets[3].parameters, ElementsAre(0));
  EXPECT_THAT(rows_per_rank(plan, 1), ElementsAre(25, 25));
  const RowRange second = plan.buckets[1].segments[1][0].range;
  EXPECT_EQ(second.row_begin, 25 + 9);  // rank 1's rows 25 to 49 in parts of 9, 8 and 8
  EXPECT_EQ(second.row_end, 25 + 17);
}

TEST(ShardPlan, SpreadsAStackBetweenItsMatrices) {
  const ShardPlan plan = make_plan(
      std::vector<ParameterSpec>{
          {.name = "experts", .shape = {5, 6, 8}, .matrix_view = MatrixView::last_two}},
      {.world_size = 2, .bucket_bytes = 100});
  // Nine parts would fill a bucket, but the rank with the fewest owns two matrices.
  ASSERT_EQ(plan.buckets.size(), 2u);
  EXPECT_EQ(plan.buckets[0].segments[0][0].range.matrices(), 2);
  EXPECT_EQ(plan.buckets[1].segments[0][0].range.matrices(), 1);
  EXPECT_EQ(plan.buckets[1].segments[1][0].range.row_begin, 4 * 6);
}

TEST(ShardPlan, LeavesEmptyParametersOut) {
  const ShardPlan plan =
      make_plan(std::vector<ParameterSpec>{{"a", {0, 3}}, {"b", {0}}}, {.world_size = 3});
  EXPECT_TRUE(plan.buckets.empty());
  EXPECT_TRUE(plan.buckets_of[0].empty());
  EXPECT_TRUE(plan.buckets_of[1].empty());
  EXPECT_EQ(plan.warning(), std::nullopt);
}

TEST(ShardPlan, AppendsInBucketsOfTheirOwn) {
  ShardPlan plan = make_plan(std::vector<ParameterSpec>{{"a", {4}}}, {.world_size = 2});
  plan.append(std::vector<ParameterSpec>{{"b", {4}}});
  ASSERT_EQ(plan.buckets.size(), 2u);
  EXPECT_EQ(plan.buckets_of[0].begin, 0);
  EXPECT_EQ(plan.buckets_of[1].begin, 1);
  EXPECT_THAT(plan.load, ElementsAre(4, 4));
}

TEST(ShardPlan, RefusesWhatItCannotPlan) {
  EXPECT_EQ(error_of({}, {.world_size = 0}), "world_size = 0: must be at least 1");
  EXPECT_EQ(error_of({}, {.min_rows_per_rank = 0}), "min_rows_per_rank = 0: must be at least 1");
  EXPECT_EQ(error_of({}, {.bucket_bytes = -1}), "bucket_bytes = -1: must be at least 1");
  EXPECT_THAT(error_of({{"w", {2}}, {"w", {3}}}, {}), HasSubstr("two parameters are named 'w'"));
  EXPECT_THAT(error_of({{"w", {2, -1}}}, {}),
              HasSubstr("w [2, -1] f32 group 0 has a negative dim"));
  EXPECT_THAT(error_of({{"w", {2}, ElementType::f32, -1}}, {}), HasSubstr("negative group"));
}

TEST(ShardPlan, RefusedAppendChangesNothing) {
  ShardPlan plan = make_plan(std::vector<ParameterSpec>{{"a", {4}}}, {});
  const uint64_t before = digest(plan);
  EXPECT_THROW(plan.append(std::vector<ParameterSpec>{{"b", {1}}, {"a", {1}}}), ConfigError);
  EXPECT_EQ(digest(plan), before);
}

TEST(ShardPlan, DigestSeesEveryDifference) {
  const std::vector<ParameterSpec> base = {{"a", {8, 2}}, {"b", {4}}};
  std::vector<std::pair<std::vector<ParameterSpec>, PlanOptions>> cases = {
      {base, {}},
      {base, {.world_size = 2}},
      {base, {.min_rows_per_rank = 5}},
      {base, {.bucket_bytes = 1}},
      {{{"a", {8, 2}}}, {}},
      {{{"b", {4}}, {"a", {8, 2}}}, {}},
      {{{"c", {8, 2}}, {"b", {4}}}, {}},
      {{{"a", {2, 8}}, {"b", {4}}}, {}},
      {{{"a", {8, 2}, ElementType::f64}, {"b", {4}}}, {}},
      {{{"a", {8, 2}, ElementType::f32, 1}, {"b", {4}}}, {}},
  };
  cases.push_back({{{"a", {8, 2, 3}}, {"b", {4}}}, {}});
  cases.push_back(cases.back());
  cases.back().first[0].matrix_view = MatrixView::last_two;
  std::vector<uint64_t> digests;
  for (const auto& [parameters, options] : cases)
    digests.push_back(digest(make_plan(parameters, options)));
  ShardPlan appended = make_plan(std::span(base).first(1), {});
  appended.append(std::span(base).last(1));
  digests.push_back(digest(appended));
  std::ranges::sort(digests);
  EXPECT_EQ(std::ranges::adjacent_find(digests), digests.end());
}

}  // namespace
}  // namespace fusedbun::plan

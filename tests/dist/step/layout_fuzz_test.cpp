// The fuzz's own parts: what shrinks, what is printed, and that a fault in a result is seen.
#include <gtest/gtest.h>

#include <algorithm>

#include "fusedbun/tests/dist/step/layout_fuzz_expected.h"
#include "fusedbun/tests/dist/step/layout_fuzz_run.h"

namespace fusedbun::testing {
namespace {

FuzzCase two_rank_case() {
  FuzzCase c{.seed = 7, .ranks = 2};
  c.groups = {{.preset = "elementwise"}};
  c.parameters = {{.shape = {6, 5}, .type = ElementType::f64}};
  c.steps = {{}, {.idiom = Idiom::two_losses, .actions = {{}, {}}}};
  c.steps[0].actions = {{}};
  return c;
}

TEST(LayoutFuzz, AFailingCaseShrinksToWhatItsFaultNeeds) {
  // A made-up fault: two ranks or more, a second loss, a matrix of three rows or more.
  const auto run = [](const FuzzCase& c) -> Failure {
    const bool has_step = std::ranges::any_of(c.steps, [](const FuzzStep& step) {
      return std::ranges::count(step.actions, Act::pass, &FuzzAction::act) >= 2;
    });
    const bool has_matrix = std::ranges::any_of(c.parameters, [](const FuzzParameter& p) {
      return p.shape.size() == 2 && p.shape[0] >= 3;
    });
    return c.ranks >= 2 && has_step && has_matrix ? Failure{"values", "made up"} : Failure{};
  };
  int shrunk = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const FuzzCase drawn = draw_case(seed, FuzzWorld::local);
    if (!run(drawn)) continue;
    ++shrunk;
    const FuzzCase c = shrink(drawn, run, 5000);
    SCOPED_TRACE("seed " + std::to_string(seed) + "\n" + to_cpp(c));
    EXPECT_TRUE(run(c));
    EXPECT_EQ(c.ranks, 2);
    ASSERT_EQ(c.steps.size(), 1u);
    EXPECT_EQ(c.steps[0].actions.size(), 2u);
    EXPECT_LE(c.parameters.size(), 2u);  // one that is trained from the beginning must stay
    EXPECT_TRUE(c.changes.empty());
    EXPECT_EQ(c.bucket_bytes, FuzzCase().bucket_bytes);
    EXPECT_EQ(c.release, FuzzCase().release);
    for (const FuzzParameter& p : c.parameters) {
      if (p.shape.size() == 2) {
        EXPECT_EQ(p.shape, (std::vector<int64_t>{3, 1}));
      }
      EXPECT_EQ(p.type, ElementType::f32);
    }
  }
  EXPECT_GE(shrunk, 20) << "the made-up fault is too rare to show anything";
}

TEST(LayoutFuzz, ACaseIsPrintedAsStatementsWithoutItsDefaults) {
  EXPECT_EQ(to_cpp(two_rank_case()),
            "FuzzCase c{.seed = 7u, .ranks = 2};\n"
            "c.groups = {{.preset = \"elementwise\"}};\n"
            "c.parameters = {{.shape = {6, 5}, .type = ElementType::f64}};\n"
            "c.steps = {{.idiom = Idiom::one_pass, .actions = {{}}},\n"
            "           {.idiom = Idiom::two_losses, .actions = {{}, {}}}};\n");
}

TEST(LayoutFuzz, OneSeedDrawsOneCase) {
  for (uint64_t seed = 1; seed < 50; ++seed) {
    EXPECT_EQ(to_cpp(draw_case(seed, FuzzWorld::local)), to_cpp(draw_case(seed, FuzzWorld::local)));
  }
}

TEST(LayoutFuzz, ACaseThatIsRightComesOutRight) {
  EXPECT_EQ(run_case(two_rank_case()).sentence, "");
}

// The user's divisor is 4 where the ranks' default is 2: a run against the wrong expectation must not pass.
TEST(LayoutFuzz, ExpectedValuesDependOnTheDivisor) {
  FuzzCase other = two_rank_case();
  other.divisor = 4;
  const auto with_default = run_alone(two_rank_case()), with_user = run_alone(other);
  EXPECT_FALSE(with_default[0].values[0].equal(with_user[0].values[0]));
  FuzzCase same = two_rank_case();
  same.divisor = 2;
  EXPECT_TRUE(with_default[0].values[0].equal(run_alone(same)[0].values[0]));
}

TEST(LayoutFuzz, UnevenPassesAreExpectedToBeRefused) {
  FuzzCase c = two_rank_case();
  c.steps = {{.idiom = Idiom::uneven_passes,
              .actions = {{.act = Act::begin_guard}, {.ranks = 1}, {.act = Act::end_guard}, {}}}};
  EXPECT_TRUE(run_alone(c)[0].refused);
  EXPECT_EQ(run_case(c).sentence, "");
  c.divisor = 3;
  EXPECT_FALSE(run_alone(c)[0].refused);
  EXPECT_EQ(run_case(c).sentence, "");
}

// What the fuzz has found, as it was shrunk.

TEST(LayoutFuzzFound, AModelWithoutElementsStepsInBackward) {
  FuzzCase c{.seed = 6, .ranks = 2};
  c.step_in_backward = true;
  c.groups = {{.preset = "sm3", .nonfinite = Nonfinite::propagate}};
  c.parameters = {{.shape = {0, 1}}};
  c.steps = {{.actions = {{}}}, {.actions = {{}}}};
  EXPECT_EQ(run_case(c).sentence, "");
}

TEST(LayoutFuzzFound, AnEmptyParameterIsSteppedRelativeToItsRms) {
  FuzzCase c{.seed = 52, .ranks = 2};
  c.groups = {{.preset = "compact"}};
  c.parameters = {{.shape = {3}}, {.id = 1, .shape = {0, 2}}};
  c.steps = {{.actions = {{}}}, {.actions = {{.act = Act::save_and_load}, {}}}};
  EXPECT_EQ(run_case(c).sentence, "");
}

TEST(LayoutFuzzFound, PassesZeroedInPlaceDoNotCountWhereTheNextPassDoesNotReach) {
  FuzzCase c{.seed = 45, .ranks = 2};
  c.groups = {{.preset = "elementwise"}};
  c.parameters = {{.shape = {5}}, {.id = 1, .shape = {7}}};
  c.steps = {{.idiom = Idiom::zero_grad_again,
              .actions = {{.act = Act::begin_guard},
                          {},
                          {},
                          {.act = Act::end_guard},
                          {.act = Act::zero_grad, .value = 0},
                          {.odd_rank = 1, .unused = 2u}}}};
  EXPECT_EQ(run_case(c).sentence, "");
}

TEST(LayoutFuzzFound, WhatIsWrittenBeforeASaveIsFollowedAfterTheLoad) {
  for (const ElementType type : {ElementType::f32, ElementType::bf16}) {
    FuzzCase c{.seed = 1127, .ranks = 2};
    c.groups = {{.preset = "compact"}};
    c.parameters = {{.shape = {9}, .type = type}};
    c.steps = {{.actions = {{}}},
               {.actions = {{.act = Act::write_directly}, {.act = Act::save_and_load}, {}}}};
    EXPECT_EQ(run_case(c).sentence, "");
  }
}

TEST(LayoutFuzzFound, AnUnfrozenParameterWasReachedByTheSamePasses) {
  FuzzCase c{.seed = 96, .ranks = 2};
  c.groups = {{.preset = "elementwise"}};
  c.parameters = {{.shape = {5}}, {.id = 1, .shape = {7}, .frozen = true}};
  c.steps = {{.idiom = Idiom::guards_alone,
              .actions = {
                  {.act = Act::unfreeze}, {.act = Act::begin_guard}, {}, {.act = Act::end_guard}}}};
  EXPECT_EQ(run_case(c).sentence, "");
}

TEST(LayoutFuzzFound, AParameterMayBeUnfrozenWhereHooksReleaseGradients) {
  FuzzCase c{.seed = 39, .ranks = 2};
  c.release = GradientRelease::in_hook;
  c.groups = {{.preset = "elementwise"}};
  c.parameters = {{.shape = {5}}, {.id = 1, .shape = {7}, .frozen = true}};
  c.steps = {{.idiom = Idiom::guards_alone,
              .actions = {
                  {.act = Act::unfreeze}, {.act = Act::begin_guard}, {}, {.act = Act::end_guard}}}};
  EXPECT_EQ(run_case(c).sentence, "");
}

}  // namespace
}  // namespace fusedbun::testing

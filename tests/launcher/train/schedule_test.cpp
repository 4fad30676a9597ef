#include "fusedbun/launcher/train/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr Schedule kSchedule{
    .peak = 2.0, .warmup_steps = 4, .total_steps = 104, .floor_fraction = 0.1};

TEST(LearningRate, WarmsUpInEqualParts) {
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 0), 0.4);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 1), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 3), 1.6);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 4), 2.0);
}

TEST(LearningRate, FollowsACosineToItsFloor) {
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 54), (2.0 + 0.2) / 2)
      << "half way, half between peak and floor";
  EXPECT_NEAR(learning_rate(kSchedule, 29), 0.2 + 1.8 * (1 + 0.70710678118654752) / 2, 1e-12);
  for (int64_t step = 5; step < 104; ++step) {
    EXPECT_LT(learning_rate(kSchedule, step), learning_rate(kSchedule, step - 1))
        << "step " << step;
  }
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 104), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 1000), 0.2);
}

TEST(LearningRate, WarmupMayBeEverythingOrNothing) {
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 0, .total_steps = 10}, 0), 1);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 10, .total_steps = 10}, 9), 10.0 / 11);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 10, .total_steps = 10}, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 0, .total_steps = 1}, 0), 1);
}

// Expected values are those of transformers 5.24: get_linear_schedule_with_warmup(optimizer, 4, 104),
// get_cosine_with_min_lr_schedule_with_warmup(optimizer, 4, 104, min_lr_rate=0.1), get_wsd_schedule(optimizer, num_warmup_steps=4,
// num_decay_steps=20, num_training_steps=104, min_lr_ratio=0.1), each at lr 2.
struct Course {
  ScheduleChoice choice;
  std::map<int64_t, double> rates;
};

TEST(LearningRate, IsThatOfTransformersAfterWarmup) {
  const std::vector<Course> courses = {
      {{.kind = ScheduleKind::linear},
       {{4, 2.0}, {5, 1.98}, {29, 1.5}, {54, 1.0}, {103, 0.02}, {104, 0.0}, {120, 0.0}}},
      {{.kind = ScheduleKind::cosine},
       {{4, 2.0}, {29, 1.7363961030678927}, {54, 1.1}, {103, 0.20044409567084157}}},
      {{.kind = ScheduleKind::constant}, {{4, 2.0}, {50, 2.0}, {103, 2.0}, {120, 2.0}}},
      {{.kind = ScheduleKind::wsd, .decay_fraction = 20.0 / 104},
       {{4, 2.0},
        {50, 2.0},
        {83, 2.0},
        {84, 2.0},
        {85, 1.988919506535624},
        {89, 1.7363961030678927},
        {94, 1.1},
        {103, 0.21108049346437613},
        {104, 0.2},
        {120, 0.2}}}};
  for (Course course : courses) {
    course.choice.warmup = int64_t{4};
    const Schedule schedule = schedule_of(course.choice, 2.0, 104);
    for (const auto& [step, rate] : course.rates) {
      EXPECT_NEAR(learning_rate(schedule, step), rate, 1e-14)
          << name_of(course.choice.kind) << " at step " << step;
    }
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 1), 0.8) << "warm-up is that of all schedules";
  }
}

TEST(LearningRate, GoesDownToTheMinimumThatWasAskedFor) {
  for (const ScheduleKind kind : {ScheduleKind::cosine, ScheduleKind::linear, ScheduleKind::wsd}) {
    const Schedule schedule = schedule_of({.kind = kind, .floor_fraction = 0.25}, 4.0, 200);
    EXPECT_DOUBLE_EQ(learning_rate(schedule, 200), 1.0) << name_of(kind);
  }
  EXPECT_DOUBLE_EQ(
      learning_rate(schedule_of({.kind = ScheduleKind::linear, .floor_fraction = 0.5}, 1, 450),
                    250),
      0.75)
      << "half way from step 50 to 450";
}

TEST(LearningRate, WsdDecaysAfterWarmupAlsoWhereItsPartIsLonger) {
  const Schedule schedule = schedule_of(
      {.kind = ScheduleKind::wsd, .floor_fraction = 0, .decay_fraction = 1, .warmup = int64_t{10}},
      1, 30);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 20), 0.5);
  EXPECT_NEAR(learning_rate(schedule, 30), 0, 1e-15);
}

TEST(ScheduleChoice, WarmupIsStepsOrAPartOfTheRunAndShortInShortRuns) {
  const auto steps = [](std::optional<Warmup> warmup, int64_t total) {
    return schedule_of({.warmup = warmup}, 1, total).warmup_steps;
  };
  EXPECT_EQ(steps({}, 300), 50);
  EXPECT_EQ(steps({}, 200), 50);
  EXPECT_EQ(steps({}, 100), 25);
  EXPECT_EQ(steps({}, 3), 0);
  EXPECT_EQ(steps(parse_warmup("120"), 100), 120) << "who says a number means it";
  EXPECT_EQ(steps(parse_warmup("5%"), 625), 31);
  EXPECT_EQ(steps(parse_warmup("12.5%"), 80), 10);
  EXPECT_EQ(steps(parse_warmup("0"), 80), 0);
  for (const char* bad : {"", "5 %", "x", "5%%", "0.5", "nan%"})
    EXPECT_THROW(parse_warmup(bad), ConfigError) << bad;
}

TEST(ScheduleChoice, RefusesWhatTheScheduleHasNoUseFor) {
  const auto refusal = [](const ScheduleChoice& choice) -> std::string {
    try {
      validate(choice);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal({.kind = ScheduleKind::constant, .floor_fraction = 0.1}),
              HasSubstr("--min-lr: --schedule constant stays at the peak"));
  EXPECT_THAT(refusal({.decay_fraction = 0.1}), HasSubstr("this is --schedule cosine"));
  EXPECT_THAT(refusal({.floor_fraction = 1.5}), HasSubstr("--min-lr = 1.5: from 0 to 1"));
  EXPECT_THAT(refusal({.kind = ScheduleKind::wsd, .decay_fraction = -1}),
              HasSubstr("--decay = -1: from 0 to 1"));
  EXPECT_THAT(refusal({.warmup = int64_t{-1}}), HasSubstr("--warmup = -1"));
  EXPECT_THAT(refusal({.warmup = 1.2}), HasSubstr("--warmup = 120%"));
  EXPECT_EQ(refusal({.kind = ScheduleKind::wsd, .floor_fraction = 0, .decay_fraction = 0.5}), "");
  EXPECT_THROW(parse_schedule("Cosine"), ConfigError);
}

TEST(ScheduleChoice, ASentenceSaysWhatTheRateDoes) {
  EXPECT_EQ(describe(schedule_of({.kind = parse_schedule("wsd")}, 3e-3, 300)),
            "wsd, 50 of 300 steps of warm-up to 0.003, then down to 0.0003 in the last 60");
  EXPECT_EQ(describe(schedule_of({.kind = parse_schedule("linear")}, 3e-3, 20)),
            "linear, 5 of 20 steps of warm-up to 0.003, then down to 0");
  EXPECT_EQ(describe(schedule_of({.kind = parse_schedule("constant")}, 3e-3, 300)),
            "constant, 50 of 300 steps of warm-up to 0.003, which stays");
  EXPECT_EQ(describe(schedule_of({.warmup = int64_t{50}}, 3e-3, 20)),
            "only rises: 50 steps of warm-up take all of the 20 steps of the run");
}

}  // namespace
}  // namespace fusedbun::train

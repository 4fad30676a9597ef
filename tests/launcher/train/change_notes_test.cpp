#include "fusedbun/launcher/train/change_notes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fusedbun::train {
namespace {

using changes::ChangeEntry;
using changes::Field;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ChangeNotes, AChangeIsNotedOnceInTheStepThatUsesItFirst) {
  ChangeNotes notes({"default", "no_decay"}, 0);
  notes.accept(std::vector<ChangeEntry>{{1, 10, Field::learning_rate, -1, 0.00123},
                                        {2, 7, Field::weight_decay, 1, 0.5},
                                        {2, 7, Field::centralize, 0, 1},
                                        {2, 7, Field::lr_scale, -1, 0.25}},
               2);
  EXPECT_EQ(notes.known_revision(), 2);
  EXPECT_THAT(notes.take(6), IsEmpty());
  EXPECT_THAT(notes.take(7), ElementsAre("revision 2: weight_decay = 0.5 (no_decay), centralize = "
                                         "true (default), lr_scale = 0.25"));
  EXPECT_THAT(notes.take(9), IsEmpty());
  notes.accept(std::vector<ChangeEntry>{{3, 11, Field::unpin_learning_rate, -1, 1},
                                        {4, 11, Field::use_rms, 1, 0}},
               4);
  EXPECT_THAT(notes.take(11), ElementsAre("revision 1: learning_rate = 0.00123",
                                          "revision 3: learning_rate follows the schedule",
                                          "revision 4: use_rms = false (no_decay)"));
  EXPECT_THAT(notes.take(1000), IsEmpty());
}

TEST(ChangeNotes, OneThatWasTakenBackIsNotNoted) {
  ChangeNotes notes({"default"}, 0);
  notes.accept(std::vector<ChangeEntry>{{1, 10, Field::eps, -1, 1e-6}}, 1);
  notes.accept(std::vector<ChangeEntry>{{2, 5, Field::cancel, -1, 1}}, 2);
  EXPECT_THAT(notes.take(20), IsEmpty());
}

TEST(ChangeNotes, WhatAnEarlierAttemptUsedIsNotNotedAgain) {
  ChangeNotes notes({"default"}, 8);
  notes.accept(std::vector<ChangeEntry>{{1, 7, Field::eps, -1, 1}, {2, 8, Field::eps, -1, 2}}, 2);
  EXPECT_THAT(notes.take(8), ElementsAre("revision 2: eps = 2"));
}

}  // namespace
}  // namespace fusedbun::train

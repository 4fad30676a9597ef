#include "fusedbun/dist/changes/changes_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// The sentence that refuses `text`, after which exit code.
std::string refusal(const std::string& text) {
  try {
    parse_changes(text, "f.toml");
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + " " + error.what();
  }
  return "taken";
}

TEST(ChangesFile, NamesOfTheOptimizerAndOfTheContract) {
  const auto changes = parse_changes(R"(
# comment
[[changes]]
at_step = 40
lr = 1e-4
weight_decay = 1
group = "all"
reason = "as in \"run 12\""

[[changes]]
at_step = 0
patches = [{group = "body", Lambda = 0.1, use_rms = false}, {group = "head", unpin_lr = true}]
)",
                                     "f.toml");
  ASSERT_EQ(changes.size(), 2U);
  EXPECT_EQ(changes[0].request.apply_at_step, 40);
  EXPECT_EQ(changes[0].request.reason, "as in \"run 12\"");
  EXPECT_EQ(changes[0].where, "f.toml:3: changes[1]");
  EXPECT_THAT(changes[0].request.patches, ElementsAre(ValuePatch{"*", Field::learning_rate, 1e-4},
                                                      ValuePatch{"*", Field::weight_decay, 1}));
  EXPECT_THAT(changes[1].request.patches,
              ElementsAre(ValuePatch{"body", Field::weight_decay, 0.1},
                          ValuePatch{"body", Field::use_rms, 0},
                          ValuePatch{"head", Field::unpin_learning_rate, 1}));
  EXPECT_NE(changes[0].request.request_id, changes[1].request.request_id);
  EXPECT_TRUE(parse_changes("", "f.toml").empty());
}

TEST(ChangesFile, WhatCannotBeIsNamedWithItsLine) {
  EXPECT_THAT(refusal("[[changes]]\nat_step = = 1\n"), HasSubstr("64 f.toml:2: "));
  EXPECT_THAT(refusal("[[changes]]\nlr = 1\n"),
              HasSubstr("78 f.toml:1: changes[1]: at_step is missing"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\n"), HasSubstr("sets no hyperparameter"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = -1\nlr = 1\n"),
              HasSubstr("78 f.toml:2: changes[1]: at_step"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1.5\nlr = 1\n"), HasSubstr("at_step"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nlrr = 1\n"),
              HasSubstr("78 f.toml:3: changes[1]: there is no hyperparameter 'lrr'"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nlr = \"1\"\n"), HasSubstr("lr is not a number"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nlr = nan\n"), HasSubstr("lr is out of its range"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nuse_rms = 1\n"),
              HasSubstr("use_rms is not true or false"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nlr = -1\n"), HasSubstr("78 f.toml:3: "));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\nlr = 1\npatches = []\n"),
              HasSubstr("beside patches"));
  EXPECT_THAT(refusal("[[changes]]\nat_step = 1\npatches = [1]\n"), HasSubstr("list of tables"));
  EXPECT_THAT(refusal("[changes]\nat_step = 1\nlr = 1\n"), HasSubstr("twice in brackets"));
  EXPECT_THAT(refusal("[model]\nlayers = 3\n"), HasSubstr("only [[changes]]"));
  EXPECT_THROW(read_changes_file("/no/such/file.toml"), DataError);
}

TEST(ChangesFile, WhatIsWrittenIsReadBackBitForBit) {
  const std::vector<ChangeToWrite> changes = {
      {7,
       "tab\t, \"quotes\", back\\slash, \x1b[31m, ü",
       {{"*", Field::learning_rate, 0.1}, {"*", Field::eps, 5e-324}}},
      {7, "", {{"a \"group\"", Field::use_rms, 1}}},
      {9,
       "two groups",
       {{"body", Field::weight_decay, 1.0 / 3}, {"head", Field::learning_rate, 1e308}}},
      {9, "", {{"*", Field::max_grad_norm, 1}, {"*", Field::unpin_learning_rate, 1}}},
  };
  const std::string text = changes_as_toml(changes);
  const auto read = parse_changes(text, "f.toml");
  ASSERT_EQ(read.size(), changes.size()) << text;
  for (size_t i = 0; i < changes.size(); ++i) {
    EXPECT_EQ(read[i].request.apply_at_step, changes[i].at_step);
    EXPECT_EQ(read[i].request.reason, changes[i].reason);
    EXPECT_EQ(read[i].request.patches, changes[i].patches);
  }
}

}  // namespace
}  // namespace fusedbun::changes

#include "fusedbun/launcher/cli/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <optional>

#include "fusedbun/core/error.h"

namespace fusedbun::launcher {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

/// A command with a flag of each kind, and what was typed.
class SettingsTest : public testing::Test {
 protected:
  SettingsTest() {
    command_->option_defaults()->always_capture_default();
    command_->add_option("--lr", lr_, "rate")->default_str("the preset's")->group("Optimizer");
    command_->add_option("--batch", batch_, "sequences")->group("Run");
    command_->add_option("--data", data_, "files")->group("Data");
    command_->add_option("--rank", rank_, "place")->group("Run");
    command_->add_flag("-q,--quiet", quiet_, "say little")->group("Run");
    command_
        ->add_flag_function(
            "--centralize,!--no-centralize", [this](int64_t count) { centralize_ = count > 0; },
            "means")
        ->group("Optimizer");
    command_->add_option("--kind", kind_, "one of two")
        ->transform(CLI::CheckedTransformer(std::map<std::string, int>{{"a", 1}, {"b", 2}}))
        ->group("Run");
  }

  Origins apply(const std::vector<std::string>& typed, const std::vector<Setting>& settings) {
    std::vector<std::string> words = typed;
    words.insert(words.begin(), "train");
    std::ranges::reverse(words);
    app_.parse(words);
    origins_ = apply_settings(*command_, settings, typed_only);
    return origins_;
  }
  static bool typed_only(std::string_view flag) { return flag == "rank"; }
  std::string refusal(const std::vector<Setting>& settings) {
    try {
      apply({}, settings);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "taken";
  }

  CLI::App app_{"", "fusedbun"};
  CLI::App* command_ = app_.add_subcommand("train");
  std::optional<double> lr_;
  int64_t batch_ = 16;
  std::vector<std::string> data_;
  int rank_ = 0;
  bool quiet_ = false;
  std::optional<bool> centralize_;
  int kind_ = 1;
  Origins origins_;
};

TEST_F(SettingsTest, WhatIsTypedWinsAndOfSettingsTheLast) {
  apply({"--batch", "8"}, {{"batch", {"32"}, "a.toml:1"},
                           {"lr", {"0.5"}, "a.toml:2"},
                           {"lr", {"0.25"}, "the environment's FUSEDBUN_LR"}});
  EXPECT_EQ(batch_, 8);
  EXPECT_EQ(lr_, 0.25);
  EXPECT_EQ(kind_, 1);
  EXPECT_EQ(origins_.at(command_->get_option("--batch")), "typed");
  EXPECT_EQ(origins_.at(command_->get_option("--lr")), "the environment's FUSEDBUN_LR");
  EXPECT_FALSE(origins_.contains(command_->get_option("--kind")));
}

TEST_F(SettingsTest, ListsSwitchesAndNamesAreTaken) {
  apply({}, {{"data", {"a b", "c"}, "f:1"},
             {"quiet", {"true"}, "f:2"},
             {"centralize", {"false"}, "f:3"},
             {"kind", {"b"}, "f:4"}});
  EXPECT_THAT(data_, ElementsAre("a b", "c"));
  EXPECT_TRUE(quiet_);
  EXPECT_EQ(centralize_, false);
  EXPECT_EQ(kind_, 2);
}

TEST_F(SettingsTest, ASwitchHasItsOppositesNameToo) {
  apply({}, {{"no-centralize", {"true"}, "f:1"}});
  EXPECT_EQ(centralize_, false);
}

TEST_F(SettingsTest, ASwitchThatIsOffStaysAsItWas) {
  apply({}, {{"quiet", {"false"}, "f:1"}});
  EXPECT_FALSE(quiet_);
}

TEST_F(SettingsTest, WhatCannotBeIsRefusedWithItsPlace) {
  EXPECT_EQ(refusal({{"bach", {"3"}, "run.toml:7"}}),
            "run.toml:7: bach is no flag of 'train', did you mean batch?");
  EXPECT_THAT(refusal({{"rank", {"3"}, "run.toml:7"}}), HasSubstr("give it on the command line"));
  EXPECT_THAT(refusal({{"batch", {"many"}, "run.toml:7"}}),
              HasSubstr("run.toml:7: batch = 'many': it must be INT"));
  EXPECT_THAT(refusal({{"batch", {"3", "4"}, "run.toml:7"}}), HasSubstr("one value"));
  EXPECT_THAT(refusal({{"data", {}, "run.toml:7"}}), HasSubstr("at least one value"));
  EXPECT_THAT(refusal({{"quiet", {"maybe"}, "run.toml:7"}}), HasSubstr("true or false"));
  EXPECT_THAT(refusal({{"kind", {"c"}, "run.toml:7"}}), HasSubstr("run.toml:7: kind = 'c'"));
}

TEST_F(SettingsTest, TheEnvironmentNamesFlagsInCapitals) {
  const std::vector<Setting> found = settings_of_environment(*command_,
                                                             {{"FUSEDBUN_LR", "0.1"},
                                                              {"FUSEDBUN_NO_CENTRALIZE", "true"},
                                                              {"FUSEDBUN_BATCH", ""},
                                                              {"FUSEDBUN_RANK", "1"},
                                                              {"FUSEDBUN_TOKEN", "x"},
                                                              {"FUSEDBUN_TEST_SEED", "5"},
                                                              {"OTHER_LR", "3"}},
                                                             typed_only);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].flag, "lr");
  EXPECT_THAT(found[0].values, ElementsAre("0.1"));
  EXPECT_EQ(found[0].origin, "the environment's FUSEDBUN_LR");
  EXPECT_EQ(found[1].flag, "no-centralize");
}

TEST_F(SettingsTest, AVariableThatIsNearlyOneIsRefused) {
  try {
    settings_of_environment(*command_, {{"FUSEDBUN_BACTH", "3"}}, typed_only);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "the environment's FUSEDBUN_BACTH is no flag of 'train', did you mean "
                 "FUSEDBUN_BATCH?");
  }
}

TEST_F(SettingsTest, TheTextShowsEveryFlagWithItsOrigin) {
  apply({"--data", "a \"b\"", "c", "--no-centralize"}, {{"lr", {"1e-3"}, "run.toml:2"}});
  EXPECT_EQ(settings_text(*command_, origins_, typed_only),
            "# -- Optimizer\n"
            "lr = 1e-3  # run.toml:2\n"
            "centralize = false  # typed\n"
            "\n"
            "# -- Run\n"
            "# batch: 16\n"
            "# quiet: false\n"
            "# kind: 1\n"
            "\n"
            "# -- Data\n"
            "data = [\"a \\\"b\\\"\", \"c\"]  # typed\n");
}

TEST_F(SettingsTest, WhatWasSetIsKeptWithoutWhatIsOfOneProcess) {
  apply({"--rank", "0", "--no-centralize", "--data", "a", "b"}, {{"batch", {"4"}, "f:1"}});
  EXPECT_THAT(settings_of(*command_, typed_only),
              ElementsAre(Pair("batch", ElementsAre("4")), Pair("data", ElementsAre("a", "b")),
                          Pair("centralize", ElementsAre("false"))));
}

}  // namespace
}  // namespace fusedbun::launcher

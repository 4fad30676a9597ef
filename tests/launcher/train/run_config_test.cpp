#include "fusedbun/launcher/train/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "../../support/scratch_folder.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/launcher/model/config_file.h"

namespace fusedbun::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class RunConfigTest : public testing::Test {
 protected:
  std::filesystem::path file(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }
  /// "flag=value,value@line" of each setting.
  std::vector<std::string> settings(const std::filesystem::path& path) {
    std::vector<std::string> texts;
    for (const launcher::Setting& setting : read_run_config(path)) {
      std::string text = setting.flag + "=";
      for (const std::string& value : setting.values)
        text += (text.back() == '=' ? "" : ",") + value;
      const std::string place = path.string();
      texts.push_back(text + "@" + setting.origin.substr(place.size()));
    }
    return texts;
  }
  std::string refusal(const std::string& text) {
    try {
      read_run_config(file("run.toml", text));
    } catch (const Error& error) {
      return std::to_string(static_cast<int>(error.code())) + " " + error.what();
    }
    return "taken";
  }
  support::ScratchFolder folder_;
};

TEST_F(RunConfigTest, AKeyPerFlagWithItsLine) {
  EXPECT_THAT(
      settings(file("run.toml",
                    "lr = 1e-3\nsteps = 300\nmin_lr = 0.05\ndata = [\"a b\", 'c']\n"
                    "centralize = true\nschedule = \"linear\"\n")),
      testing::UnorderedElementsAre("lr=0.001@:1", "steps=300@:2", "min-lr=0.05@:3",
                                    "data=a b,c@:4", "centralize=true@:5", "schedule=linear@:6"));
}

TEST_F(RunConfigTest, AModelsTableOrFileIsAModelsConfig) {
  const std::string llama =
      "model_type = \"llama\"\nvocab_size = 96\nhidden_size = 32\nintermediate_size = 64\n"
      "num_hidden_layers = 2\nnum_attention_heads = 4\nmax_position_embeddings = 64\n";
  const auto whole = file("model.toml", llama);
  EXPECT_THAT(settings(whole), ElementsAre("model-config=" + whole.string() + "@"));
  const auto beside = file("run.toml", "lr = 0.5\n[model]\n" + llama);
  EXPECT_THAT(settings(beside),
              testing::UnorderedElementsAre("lr=0.5@:1", "model-config=" + beside.string() + "@"));
  EXPECT_EQ(model::read_config_file(beside).text, model::read_config_file(whole).text);
  const auto json = file("config.json", R"({"model_type": "gpt2"})");
  EXPECT_THAT(settings(json), ElementsAre("model-config=" + json.string() + "@"));
  EXPECT_THAT(settings(folder_ / "."),
              ElementsAre("model-config=" + (folder_ / ".").string() + "@"));
}

TEST_F(RunConfigTest, ARunsRecordRepeatsWhatWasSetButItsPlaces) {
  run_folder::Attempt attempt;
  attempt.config = {{"lr", {"1e-3"}}, {"data", {"a b", "c"}}, {"run-dir", {"runs/a"}},
                    {"save", {"m"}},  {"trace", {"t.json"}},  {"resume", {"5"}}};
  run_folder::RunRecorder recorder(folder_ / "", attempt, run_folder::Reuse::overwrite,
                                   [](const std::string&) {});
  std::filesystem::rename(folder_ / "run.json", folder_ / "first.json");
  EXPECT_THAT(settings(folder_ / "first.json"),
              testing::UnorderedElementsAre("lr=1e-3@", "data=a b,c@"));
}

TEST_F(RunConfigTest, ARecordThatDidNotKeepThemSaysSo) {
  run_folder::RunRecorder recorder(folder_ / "", {}, run_folder::Reuse::overwrite,
                                   [](const std::string&) {});
  EXPECT_THROW(read_run_config(folder_ / "run.json"), DataError);
}

TEST_F(RunConfigTest, WhatCannotBeIsRefusedWithItsPlace) {
  EXPECT_THAT(refusal("lr = \n"), HasSubstr("64 " + (folder_ / "run.toml").string() + ":1: "));
  EXPECT_THAT(refusal("a = 1\n[optimizer]\nlr = 3\n"), HasSubstr("run.toml:2: optimizer must be"));
  EXPECT_THAT(refusal("started = 2026-01-01\n"), HasSubstr("78 "));
  EXPECT_THROW(read_run_config(folder_ / "gone.toml"), DataError);
}

}  // namespace
}  // namespace fusedbun::train

#include "fusedbun/launcher/train/initial_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/train/hf_gpt2.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using support::write_text;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

constexpr Gpt2Config kSizes{.n_layer = 2, .n_head = 4, .n_embd = 64, .n_ctx = 8, .vocab = 256};

// A folder with a model whose metadata are those of `transformers`, which do not say how many heads there are.
class InitialModelTest : public testing::Test {
 protected:
  InitialModelTest() {
    save_hf(folder_ / "ours", Gpt2(kSizes, 3));
    const checkpoint::SafetensorsFile ours(folder_ / "ours");
    fs::create_directory(folder_ / "theirs");
    checkpoint::write_safetensors(theirs_, ours.tensors(), {{"format", "pt"}});
  }

  InitialModel choose(const fs::path& init, std::optional<int64_t> heads = {}) {
    TrainOptions options;
    options.init = init;
    options.model.heads = heads;
    return choose_initial_model(options);
  }
  void write_config(const std::string& text) { write_text(folder_ / "theirs/config.json", text); }
  template <class Kind>
  void expect_refused(const fs::path& init, const std::string& why,
                      std::optional<int64_t> heads = {}) {
    EXPECT_THAT([&] { choose(init, heads); }, ThrowsMessage<Kind>(HasSubstr(why)));
  }

  support::ScratchFolder folder_;
  fs::path theirs_ = folder_ / "theirs/model.safetensors";
};

TEST_F(InitialModelTest, OurOwnFileSaysEverything) {
  const InitialModel initial = choose(folder_ / "ours");
  EXPECT_EQ(initial.config, kSizes);
  EXPECT_THAT(initial.assumption, IsEmpty());
}

TEST_F(InitialModelTest, ConfigJsonBesideTheFileSaysHowManyHeads) {
  write_config(R"({"n_head": 4})");
  const InitialModel initial = choose(theirs_);
  EXPECT_EQ(initial.config, kSizes);
  EXPECT_THAT(initial.assumption, IsEmpty());
}

TEST_F(InitialModelTest, ItIsFoundBesideALinkAsInTheCacheOfHuggingFace) {
  fs::create_directories(folder_ / "snapshots/1");
  fs::create_directories(folder_ / "blobs");
  fs::rename(theirs_, folder_ / "blobs/abc");
  fs::create_symlink("../../blobs/abc", folder_ / "snapshots/1/model.safetensors");
  write_text(folder_ / "snapshots/1/config.json", R"({"n_head": 4})");
  EXPECT_EQ(choose(folder_ / "snapshots/1/model.safetensors").config, kSizes);
  EXPECT_EQ(choose(folder_ / "snapshots/1").config, kSizes) << "the folder itself";
}

TEST_F(InitialModelTest, WhatIsAssumedIsSaidWithTheFlagThatSaysIt) {
  const InitialModel initial = choose(theirs_);
  EXPECT_EQ(initial.config.n_head, 1);
  EXPECT_THAT(initial.assumption, HasSubstr("heads: 1 assumed"));
  EXPECT_THAT(initial.assumption, HasSubstr("--heads"));
  EXPECT_THAT(choose(theirs_, 4).assumption, IsEmpty());
}

TEST_F(InitialModelTest, ContradictionsAreRefused) {
  write_config(R"({"n_head": 4})");
  expect_refused<ConfigError>(theirs_, "--heads = 2: n_head in ", 2);
  write_config(R"({"n_head": 4, "n_layer": 12})");
  expect_refused<DataError>(theirs_, "says n_layer = 12");
  write_config(R"({"n_embd": 128})");
  expect_refused<DataError>(theirs_, "says n_embd = 128");
  write_config(R"({"activation_function": "relu"})");
  expect_refused<DataError>(theirs_, "activation_function = \"relu\"");
  write_config(R"({"n_head": 8})");
  fs::copy_file(folder_ / "ours", theirs_, fs::copy_options::overwrite_existing);
  expect_refused<ConfigError>(theirs_, "config.json = 8: ");
}

TEST_F(InitialModelTest, AFolderIsItsModel) {
  write_config(R"({"n_head": 4})");
  EXPECT_EQ(choose(folder_ / "theirs").file, fs::canonical(theirs_));
  fs::remove(theirs_);
  expect_refused<DataError>(folder_ / "theirs", "is a folder without a model.safetensors");
  write_text(folder_ / "theirs/model.safetensors.index.json", R"({"weight_map": {}})");
  expect_refused<DataError>(folder_ / "theirs", "in several shards");
  expect_refused<DataError>(folder_ / "theirs/model.safetensors.index.json",
                            "JSON, perhaps the index of a model in several shards");
}

}  // namespace
}  // namespace fusedbun::train

#include "fusedbun/launcher/train/initial_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/llama.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using support::write_text;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

constexpr model::Gpt2Config kSizes{
    .n_layer = 2, .n_head = 4, .n_embd = 64, .n_ctx = 8, .vocab = 256};

// A config.json of `fields`, and of kSizes where they do not say.
std::string config_with(const std::string& fields) {
  std::string text = "{\"model_type\": \"gpt2\"";
  for (const auto& [name, value] : {std::pair("n_layer", 2),
                                    {"n_embd", 64},
                                    {"n_positions", 8},
                                    {"vocab_size", 256},
                                    {"attn_pdrop", 0},
                                    {"embd_pdrop", 0},
                                    {"resid_pdrop", 0}}) {
    const std::string key = "\"" + std::string(name) + "\"";
    if (fields.find(key) == std::string::npos) text += ", " + key + ": " + std::to_string(value);
  }
  return text + ", " + fields + "}";
}

// A folder with a model whose metadata are those of `transformers`, which do not say how many heads there are.
class InitialModelTest : public testing::Test {
 protected:
  InitialModelTest() {
    const model::Gpt2 ours_made(kSizes, 3);
    model::save_weights(folder_ / "ours", *ours_made, model::metadata_of(*ours_made));
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
  EXPECT_EQ(initial.config, model::ModelConfig(kSizes));
  EXPECT_THAT(initial.assumption, IsEmpty());
}

TEST_F(InitialModelTest, ConfigJsonBesideTheFileSaysHowManyHeads) {
  write_config(config_with("\"n_head\": 4"));
  const InitialModel initial = choose(theirs_);
  EXPECT_EQ(initial.config, model::ModelConfig(kSizes));
  EXPECT_THAT(initial.assumption, IsEmpty());
}

TEST_F(InitialModelTest, ItIsFoundBesideALinkAsInTheCacheOfHuggingFace) {
  fs::create_directories(folder_ / "snapshots/1");
  fs::create_directories(folder_ / "blobs");
  fs::rename(theirs_, folder_ / "blobs/abc");
  fs::create_symlink("../../blobs/abc", folder_ / "snapshots/1/model.safetensors");
  write_text(folder_ / "snapshots/1/config.json", config_with("\"n_head\": 4"));
  EXPECT_EQ(choose(folder_ / "snapshots/1/model.safetensors").config, model::ModelConfig(kSizes));
  EXPECT_EQ(choose(folder_ / "snapshots/1").config, model::ModelConfig(kSizes))
      << "the folder itself";
}

TEST_F(InitialModelTest, WhatIsAssumedIsSaidWithTheFlagThatSaysIt) {
  const InitialModel initial = choose(theirs_);
  EXPECT_EQ(std::get<model::Gpt2Config>(initial.config).n_head, 1);
  EXPECT_THAT(initial.assumption, HasSubstr("heads: 1 assumed"));
  EXPECT_THAT(initial.assumption, HasSubstr("--heads"));
  EXPECT_THAT(choose(theirs_, 4).assumption, IsEmpty());
}

TEST_F(InitialModelTest, DropoutIsThatOfConfigJsonUnlessTheFlagSays) {
  write_config(
      config_with("\"n_head\": 4, \"attn_pdrop\": 0.3, \"embd_pdrop\": 0.1, \"resid_pdrop\": 0.1"));
  EXPECT_EQ(model::dropout_of(choose(theirs_).config),
            (model::DropoutRates{.embeddings = 0.1, .attention = 0.3, .residuals = 0.1}));
  TrainOptions options;
  options.init = theirs_;
  options.model.dropout = 0;
  EXPECT_TRUE(model::dropout_of(choose_initial_model(options).config).is_none());
  // Neither our own sizes nor a file that stands alone have any that nobody asked for.
  EXPECT_TRUE(model::dropout_of(choose(folder_ / "ours").config).is_none());
  options.init.clear();
  EXPECT_TRUE(model::dropout_of(choose({}).config).is_none());
  options.model.dropout = 0.5;
  EXPECT_EQ(model::dropout_of(choose_initial_model(options).config).embeddings, 0.5);
}

TEST_F(InitialModelTest, ContradictionsAreRefused) {
  write_config(config_with("\"n_head\": 4"));
  expect_refused<ConfigError>(theirs_, "--heads = 2: n_head in ", 2);
  write_config(config_with("\"n_head\": 4, \"n_layer\": 12"));
  expect_refused<DataError>(theirs_, "says n_layer = 12");
  write_config(config_with("\"n_embd\": 128, \"n_head\": 4"));
  expect_refused<DataError>(theirs_, "says n_embd = 128");
  write_config(config_with("\"activation_function\": \"relu\""));
  expect_refused<DataError>(theirs_, "activation_function = \"relu\"");
  write_config(config_with("\"n_head\": 8"));
  fs::copy_file(folder_ / "ours", theirs_, fs::copy_options::overwrite_existing);
  expect_refused<ConfigError>(theirs_, "config.json = 8: ");
}

TEST_F(InitialModelTest, AFolderIsItsModel) {
  write_config(config_with("\"n_head\": 4"));
  EXPECT_EQ(choose(folder_ / "theirs").file, fs::canonical(theirs_));
  fs::remove(theirs_);
  expect_refused<DataError>(folder_ / "theirs", "is a folder without a model.safetensors");
  write_text(folder_ / "theirs/model.safetensors.index.json", R"({"weight_map": {}})");
  expect_refused<DataError>(folder_ / "theirs", "it has no weight_map");
}

TEST_F(InitialModelTest, ALlamaIsWhatItsConfigJsonSays) {
  const model::LlamaConfig sizes{.layers = 2,
                                 .width = 32,
                                 .mlp_width = 48,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .head_width = 8,
                                 .context = 16};
  const model::Llama made(sizes, 3);
  fs::create_directory(folder_ / "llama");
  model::save_weights(folder_ / "llama/model.safetensors", *made, {});
  write_text(folder_ / "llama/config.json", model::hf_config_text(sizes, "float32"));
  const InitialModel initial = choose(folder_ / "llama");
  EXPECT_EQ(initial.config, model::ModelConfig(sizes));
  TrainOptions options;
  options.init = folder_ / "llama";
  const auto loaded = make_model(initial, options);
  EXPECT_TRUE(at::equal(loaded->parameters()[3], made->parameters()[3]));
  expect_refused<ConfigError>(folder_ / "llama", "--heads = 2", 2);
  fs::remove(folder_ / "llama/config.json");
  expect_refused<DataError>(folder_ / "llama", "is not a GPT-2 that fits: 'wte.weight' is missing");
}

}  // namespace
}  // namespace fusedbun::train

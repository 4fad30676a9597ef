#include "fusedbun/launcher/model/config_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

namespace fs = std::filesystem;
using support::write_text;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const std::string kLlama = R"(
model_type = "llama"
num_hidden_layers = 2
hidden_size = 32
intermediate_size = 48
num_attention_heads = 4
max_position_embeddings = 64
vocab_size = 96
)";
const std::string kGpt2 = R"(
model_type = "gpt2"
n_layer = 2
n_head = 4
n_embd = 32
n_positions = 64
vocab_size = 96
)";

class ConfigFileTest : public ::testing::Test {
 protected:
  ConfigFile read(const std::string& toml) {
    write_text(toml_, toml);
    return read_config_file(toml_);
  }
  template <class Kind = ConfigError>
  void expect_refused(const std::string& toml, const std::string& why) {
    EXPECT_THAT([&] { read(toml); },
                ThrowsMessage<Kind>(AllOf(HasSubstr(toml_.string()), HasSubstr(why))))
        << toml;
  }
  static std::string without(std::string text, const std::string& key) {
    const size_t begin = text.find(key);
    return text.erase(begin, text.find('\n', begin) + 1 - begin);
  }

  support::ScratchFolder folder_;
  fs::path toml_ = folder_ / "model.toml";
};

TEST_F(ConfigFileTest, TomlSaysWhatConfigJsonSays) {
  const LlamaConfig expected{.layers = 2,
                             .width = 32,
                             .mlp_width = 48,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_width = 8,
                             .context = 64,
                             .vocab = 96,
                             .norm_epsilon = 1e-5,
                             .rope_theta = 5e5,
                             .rope = {.rule = RopeScaling::Rule::linear, .factor = 2},
                             .tied = true,
                             .attention_dropout = 0.25};
  const ConfigFile file = read(kLlama + R"(
num_key_value_heads = 2
rms_norm_eps = 1e-5
tie_word_embeddings = true
attention_dropout = 0.25
eos_token_id = [3, 5]
bos_token_id = 1
[rope_parameters]
rope_type = "linear"
rope_theta = 500_000   # a whole number is a number too
factor = 2.0
)");
  EXPECT_EQ(file.config, ModelConfig(expected));
  // As a config.json it says the same, and keeps the tokens.
  EXPECT_EQ(parse_hf_config(file.text, "text"), file.config);
  EXPECT_EQ(end_of_text_in(file.text), 3);
  EXPECT_EQ(nlohmann::json::parse(file.text)["bos_token_id"], 1);
  EXPECT_EQ(nlohmann::json::parse(file.text)["architectures"][0], "LlamaForCausalLM");

  const ConfigFile gpt2 = read(kGpt2 + "attn_pdrop = 0.0\ninitializer_range = 0.1\n");
  EXPECT_EQ(gpt2.config, ModelConfig(Gpt2Config{.n_layer = 2,
                                                .n_head = 4,
                                                .n_embd = 32,
                                                .n_ctx = 64,
                                                .vocab = 96,
                                                .initial_deviation = 0.1,
                                                .dropout = {.embeddings = 0.1, .residuals = 0.1}}));
  const ConfigFile windowed =
      read("use_sliding_window = true\nsliding_window = 9\nmax_window_layers = 1\n" +
           kLlama.substr(0, 15) + "qwen2" + kLlama.substr(20));
  EXPECT_EQ(std::get<LlamaConfig>(windowed.config).is_windowed, (std::vector<bool>{false, true}));
}

TEST_F(ConfigFileTest, SizesMustBeSaid) {
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size",
                          "num_attention_heads", "max_position_embeddings", "vocab_size"})
    expect_refused(without(kLlama, key), "does not say " + std::string(key) + "; a llama needs");
  for (const char* key : {"n_layer", "n_head", "n_embd", "n_positions", "vocab_size"})
    expect_refused(without(kGpt2, key), "does not say " + std::string(key) + "; a gpt2 needs");
  expect_refused("", "model_type");
}

TEST_F(ConfigFileTest, ATypingErrorIsNotSilent) {
  expect_refused(kLlama + "rms_norm_epz = 1e-5\n",
                 "says rms_norm_epz, for which this llama has no use; did you mean rms_norm_eps?");
  expect_refused(kGpt2 + "attn_drop = 0.0\n", "did you mean attn_pdrop?");
  expect_refused(kLlama + "[rope_parameters]\nrope_thta = 1e4\n",
                 "says rope_parameters.rope_thta, for which this llama has no use; did you mean "
                 "rope_parameters.rope_theta?");
  // Known elsewhere, and without effect here.
  for (const char* line : {"sliding_window = 9", "dtype = \"bfloat16\"", "n_layer = 3",
                           "[rope_parameters]\nlow_freq_factor = 1.0", "[optimizer]\nlr = 1e-3"})
    expect_refused(kLlama + line + "\n", "has no use");
  // Said twice, one of them would not count.
  expect_refused(kGpt2 + "n_ctx = 128\n", "says n_ctx, for which this gpt2 has no use");
  expect_refused("rope_theta = 1e4\n" + kLlama + "[rope_parameters]\nrope_theta = 1e5\n",
                 "says rope_theta, for which this llama has no use");
  expect_refused("sliding_window = 9\n" + kLlama.substr(0, 15) + "qwen2" + kLlama.substr(20),
                 "says sliding_window, for which this qwen2 has no use");
}

TEST_F(ConfigFileTest, ValuesThatCannotBeAreRefused) {
  expect_refused(kLlama + "attention_dropout = 1.5\n", "attention_dropout = 1.5");
  expect_refused(kLlama + "rope_theta = inf\n", "must be finite");
  expect_refused(kLlama + "rms_norm_eps = 2026-01-01\n", ":9: a date");
  expect_refused(kLlama + "eos_token_id = 96\n", "eos_token_id = 96");
  expect_refused(kLlama + "num_key_value_heads = 3\n", "must be a multiple of key/value heads = 3");
  expect_refused(kGpt2 + "hidden_size = \"wide\"\n", "hidden_size");
  expect_refused("model_type = \"mamba\"", "gpt2, llama");
  expect_refused<UsageError>(kLlama + "hidden_size: 5\n", ":9: ");
  expect_refused<UsageError>(kLlama + "hidden_size = 64\n", "hidden_size");
}

TEST_F(ConfigFileTest, OfAConfigJsonOthersKeysAreIgnoredAndDefaultsAreTransformers) {
  const std::string text =
      R"({"model_type": "llama", "hidden_size": 64, "use_cache": true, "strange": 1})";
  write_text(folder_ / "config.json", text);
  for (const fs::path& given : {folder_ / "config.json", fs::path(folder_ / "")}) {
    const ConfigFile file = read_config_file(given);
    const auto& config = std::get<LlamaConfig>(file.config);
    EXPECT_EQ(config.width, 64);
    EXPECT_EQ(config.mlp_width, 11008);
    EXPECT_EQ(file.text, text);
    EXPECT_EQ(file.path.filename(), "config.json");
  }
  write_text(folder_ / "config.json", R"({"model_type": "llama", "hidden_size": 0})");
  EXPECT_THROW(read_config_file(folder_ / "config.json"), DataError);
  EXPECT_THROW(read_config_file(folder_ / "gone.toml"), DataError);
  EXPECT_THROW(read_config_file(folder_ / "gone"), DataError);
}

}  // namespace
}  // namespace fusedbun::model

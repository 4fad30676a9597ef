#include "fusedbun/launcher/model/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

using support::write_text;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// What transformers 4.46 writes for GPT2Config(n_embd=64, n_head=4, n_layer=2), without its keys for generation.
constexpr const char* kGpt2 = R"({
  "activation_function": "gelu_new", "add_cross_attention": false, "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 64, "n_head": 4, "n_inner": null,
  "n_layer": 2, "n_positions": 1024, "reorder_and_upcast_attn": false, "resid_pdrop": 0.1,
  "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true, "torch_dtype": "float32", "use_cache": true,
  "vocab_size": 256})";

// Llama 3.1 8B's, as Meta published it: rope_scaling and rope_theta of transformers 4.
constexpr const char* kLlama31 = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 128256})";

class HfConfigTest : public ::testing::Test {
 protected:
  ModelConfig read(const std::string& text) {
    write_text(path_, text);
    return read_hf_config(path_);
  }
  LlamaConfig llama(const std::string& fields) {
    return std::get<LlamaConfig>(read("{\"model_type\": " + fields + "}"));
  }
  void expect_refused(const std::string& text, const std::string& why) {
    EXPECT_THAT([&] { read(text); },
                ThrowsMessage<DataError>(AllOf(HasSubstr(path_.string()), HasSubstr(why))));
  }

  support::ScratchFolder folder_;
  std::filesystem::path path_ = folder_ / "config.json";
};

TEST_F(HfConfigTest, Gpt2AsTransformersWritesIt) {
  EXPECT_EQ(std::get<Gpt2Config>(read(kGpt2)),
            (Gpt2Config{.n_layer = 2,
                        .n_head = 4,
                        .n_embd = 64,
                        .n_ctx = 1024,
                        .vocab = 256,
                        .dropout = {.embeddings = 0.1, .attention = 0.1, .residuals = 0.1}}));
}

TEST_F(HfConfigTest, Llama31AsMetaPublishedIt) {
  const LlamaConfig config = std::get<LlamaConfig>(read(kLlama31));
  EXPECT_EQ(
      config,
      (LlamaConfig{
          .layers = 32,
          .width = 4096,
          .mlp_width = 14336,
          .heads = 32,
          .kv_heads = 8,
          .head_width = 128,
          .context = 131072,
          .vocab = 128256,
          .norm_epsilon = 1e-5,
          .rope_theta = 500000,
          .rope = {.rule = RopeScaling::Rule::llama3, .factor = 8, .original_context = 8192}}));
}

TEST_F(HfConfigTest, FlagsOfTheFamilies) {
  EXPECT_TRUE(llama(R"("qwen2")").qkv_bias);
  EXPECT_FALSE(llama(R"("qwen2")").output_bias);
  EXPECT_TRUE(llama(R"("qwen3")").qk_norm);
  EXPECT_EQ(llama(R"("qwen3")").head_width, 128);
  EXPECT_FALSE(llama(R"("llama", "attention_bias": false)").qkv_bias);
  EXPECT_TRUE(llama(R"("llama", "attention_bias": true)").output_bias);
  EXPECT_EQ(llama(R"("mistral")").kv_heads, 8);
  EXPECT_EQ(llama(R"("mistral")").window, 4096);
  EXPECT_EQ(llama(R"("mistral", "sliding_window": null)").window, 0);
  EXPECT_EQ(llama(R"("qwen2", "sliding_window": 9)").window, 0) << "not switched on";
  const LlamaConfig windowed = llama(
      R"("qwen2", "num_hidden_layers": 3, "use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2)");
  EXPECT_EQ(windowed.is_windowed, (std::vector<bool>{false, false, true}));
}

TEST_F(HfConfigTest, WhatCannotBeComputedIsRefusedByItsField) {
  expect_refused("[]", "is no JSON object");
  expect_refused("{\"model_type\": \"mamba\"}", "model_type = \"mamba\"; gpt2, llama");
  expect_refused("{}", "model_type = \"\"");
  for (const std::string field :
       {R"("activation_function": "relu")", R"("layer_norm_epsilon": 1e-6)",
        R"("scale_attn_weights": false)", R"("scale_attn_by_inverse_layer_idx": true)",
        R"("add_cross_attention": true)", R"("tie_word_embeddings": false)", R"("n_inner": 128)",
        R"("attn_pdrop": 1.0)", R"("resid_pdrop": -0.1)", R"("embd_pdrop": "0.1")",
        R"("n_head": 0)", R"("n_head": "4")", R"("n_layer": 2.5)"}) {
    const std::string name = field.substr(1, field.find('"', 1) - 1);
    expect_refused("{\"model_type\": \"gpt2\", " + field + "}", name);
  }
  for (const std::string field :
       {R"("hidden_act": "gelu")", R"("attention_dropout": 1)", R"("attention_dropout": -0.1)",
        R"("rope_scaling": {"rope_type": "longrope", "factor": 2})",
        R"("rope_scaling": {"rope_type": "yarn"})", R"("num_key_value_heads": -1)"}) {
    expect_refused("{\"model_type\": \"llama\", " + field + "}", " ");
  }
}

TEST_F(HfConfigTest, DropoutIsTransformersOwnUnlessTheFileSays) {
  const auto gpt2 = [&](const std::string& fields) {
    return dropout_of(read("{\"model_type\": \"gpt2\"" + fields + "}"));
  };
  EXPECT_EQ(gpt2(""), (DropoutRates{.embeddings = 0.1, .attention = 0.1, .residuals = 0.1}));
  EXPECT_EQ(gpt2(R"(, "attn_pdrop": 0, "embd_pdrop": 0.2, "resid_pdrop": 0.5)"),
            (DropoutRates{.embeddings = 0.2, .attention = 0, .residuals = 0.5}));
  EXPECT_EQ(dropout_of(llama(R"("llama")")), DropoutRates());
  EXPECT_EQ(dropout_of(llama(R"("qwen3", "attention_dropout": 0.25)")),
            DropoutRates{.attention = 0.25});
}

TEST_F(HfConfigTest, ADropoutThatWasAskedForIsInTheFileThatIsWritten) {
  for (const std::string& text :
       {std::string(kGpt2), std::string(kLlama31), std::string(R"({"model_type": "qwen2"})")}) {
    ModelConfig config = read(text);
    set_dropout(config, 0.25);
    EXPECT_NE(read(text), config);
    EXPECT_EQ(read(with_dropout(text, config)), config);
    EXPECT_EQ(read(hf_config_text(config, "float32")), config);
  }
  ModelConfig gpt2 = read(kGpt2);
  set_dropout(gpt2, 0.25);
  auto expected = nlohmann::json::parse(kGpt2);
  for (const char* name : {"attn_pdrop", "embd_pdrop", "resid_pdrop"}) expected[name] = 0.25;
  EXPECT_EQ(nlohmann::json::parse(with_dropout(kGpt2, gpt2)), expected);
  EXPECT_EQ(describe(dropout_of(gpt2)), "embeddings 0.25, attention 0.25, residuals 0.25");
  EXPECT_EQ(describe({.attention = 0.1}), "attention 0.1");
  EXPECT_EQ(describe({}), "none");
}

TEST_F(HfConfigTest, WhatIsWrittenIsReadAgain) {
  for (
      const std::string& text :
      {std::string(kGpt2), std::string(kLlama31), std::string(R"({"model_type": "qwen3"})"),
       std::string(R"({"model_type": "gpt2", "initializer_range": 0.1, "embd_pdrop": 0.0})"),
       std::string(R"({"model_type": "llama", "attention_dropout": 0.3})"),
       std::string(R"({"model_type": "mistral", "head_dim": 80})"),
       std::string(R"({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 9})"),
       std::string(
           R"({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4, "rope_theta": 1e6}})")}) {
    const ModelConfig config = read(text);
    EXPECT_EQ(read(hf_config_text(config, "float32")), config) << text;
  }
}

TEST_F(HfConfigTest, TheTypeOfTheWeightsIsWhatTheyAreSavedIn) {
  const auto dtypes = [](const std::string& text) {
    const auto json = nlohmann::json::parse(text);
    return json.value("torch_dtype", "") + " " + json.value("dtype", "");
  };
  EXPECT_EQ(dtypes(with_dtype(kLlama31, "float32")), "float32 ");
  EXPECT_EQ(dtypes(with_dtype(R"({"dtype": "bfloat16"})", "float32")), " float32");
  EXPECT_EQ(dtypes(with_dtype("{}", "float32")), " float32");
}

}  // namespace
}  // namespace fusedbun::model

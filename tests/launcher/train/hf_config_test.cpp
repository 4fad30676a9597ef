#include "fusedbun/launcher/train/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

using support::write_text;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

// What transformers 4.46 writes for GPT2Config(n_embd=64, n_head=4, n_layer=2), without its keys for generation.
constexpr const char* kWritten = R"({
  "activation_function": "gelu_new", "add_cross_attention": false, "architectures": ["GPT2LMHeadModel"],
  "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
  "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 64, "n_head": 4, "n_inner": null,
  "n_layer": 2, "n_positions": 1024, "reorder_and_upcast_attn": false, "resid_pdrop": 0.1,
  "scale_attn_by_inverse_layer_idx": false, "scale_attn_weights": true, "torch_dtype": "float32", "use_cache": true,
  "vocab_size": 256})";

class HfConfigTest : public testing::Test {
 protected:
  std::optional<HfConfig> read(const std::string& text) {
    write_text(path_, text);
    return read_hf_config(path_);
  }

  support::ScratchFolder folder_;
  std::filesystem::path path_ = folder_ / "config.json";
};

TEST_F(HfConfigTest, SizesAsTransformersWritesThem) {
  const auto config = read(kWritten);
  ASSERT_TRUE(config);
  EXPECT_EQ(config->n_layer, 2);
  EXPECT_EQ(config->n_head, 4);
  EXPECT_EQ(config->n_embd, 64);
}

TEST_F(HfConfigTest, NoFileAndNoFieldSayNothing) {
  EXPECT_FALSE(read_hf_config(path_));
  const auto config = read("{}");
  ASSERT_TRUE(config);
  EXPECT_FALSE(config->n_layer || config->n_head || config->n_embd);
}

TEST_F(HfConfigTest, AnotherModelIsRefusedByTheFieldThatSaysSo) {
  for (const char* field :
       {R"("model_type": "llama")", R"("activation_function": "relu")",
        R"("layer_norm_epsilon": 1e-6)", R"("scale_attn_weights": false)",
        R"("scale_attn_by_inverse_layer_idx": true)", R"("add_cross_attention": true)",
        R"("tie_word_embeddings": false)", R"("n_embd": 64, "n_inner": 128)", R"("n_head": 0)",
        R"("n_head": "4")", R"("n_layer": 2.5)"}) {
    const std::string text(field);
    const std::string name = text.substr(text.rfind('"', text.rfind(':') - 2) + 1);
    EXPECT_THAT([&] { read("{" + text + "}"); },
                ThrowsMessage<DataError>(AllOf(HasSubstr(path_.string()),
                                               HasSubstr(name.substr(0, name.find('"')) + " = "))))
        << field;
  }
}

TEST_F(HfConfigTest, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "{", "4", "\"gpt2\""}) {
    EXPECT_THAT([&] { read(text); }, ThrowsMessage<DataError>(HasSubstr("is not a JSON object")))
        << text;
  }
}

}  // namespace
}  // namespace fusedbun::train

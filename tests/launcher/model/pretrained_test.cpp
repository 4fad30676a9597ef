#include "fusedbun/launcher/model/pretrained.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/hf_weights.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

class PretrainedTest : public ::testing::Test {
 protected:
  PretrainedTest() { fs::create_directory(folder_); }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }

  support::ScratchFolder scratch_;
  const fs::path folder_ = scratch_ / "model";
};

TEST_F(PretrainedTest, TheEndIsThatOfGenerationElseOfTheModel) {
  EXPECT_THAT(end_tokens(folder_), IsEmpty());
  write("config.json", R"({"eos_token_id": 7})");
  EXPECT_THAT(end_tokens(folder_), ElementsAre(7));
  write("generation_config.json", R"({"bos_token_id": 1})");
  EXPECT_THAT(end_tokens(folder_), ElementsAre(7));
  write("generation_config.json", R"({"eos_token_id": [3, 5]})");
  EXPECT_THAT(end_tokens(folder_), ElementsAre(3, 5));
  write("config.json", R"({"eos_token_id": null})");
  write("generation_config.json", "{}");
  EXPECT_THAT(end_tokens(folder_), IsEmpty());
}

TEST_F(PretrainedTest, AnEndThatIsNoNumberIsRefused) {
  write("config.json", R"({"eos_token_id": "</s>"})");
  EXPECT_THAT([&] { end_tokens(folder_); },
              ThrowsMessage<DataError>(HasSubstr("says eos_token_id = \"</s>\"")));
  write("config.json", "[]");
  EXPECT_THAT([&] { end_tokens(folder_); }, ThrowsMessage<DataError>(HasSubstr("no JSON object")));
}

TEST_F(PretrainedTest, AFolderIsReadByItsConfigAndAFileAloneByItsMetadata) {
  const Gpt2 model(Gpt2Config{.n_layer = 1, .n_head = 2, .n_embd = 16, .n_ctx = 8}, 5);
  save_weights(folder_ / kWeightsName, *model, metadata_of(*model));
  const auto check = [&](const fs::path& given) {
    const std::shared_ptr<CausalLm> loaded = load_pretrained(given);
    const at::Tensor tokens = at::arange(8, at::kLong).view({1, 8});
    EXPECT_TRUE(at::equal(loaded->forward(tokens), model.ptr()->forward(tokens)));
  };
  check(folder_ / kWeightsName);
  save_weights(folder_ / kWeightsName, *model, {});
  EXPECT_THAT([&] { load_pretrained(folder_); },
              ThrowsMessage<DataError>(HasSubstr("how many heads")));
  write(kConfigName, hf_config_text(model->config(), "float32"));
  check(folder_);
  EXPECT_THAT([&] { load_pretrained(folder_ / "none"); }, ::testing::Throws<DataError>());
  fs::create_directory(folder_ / "empty");
  EXPECT_THAT([&] { load_pretrained(folder_ / "empty"); },
              ThrowsMessage<DataError>(HasSubstr("is a folder without a model.safetensors")));
}

}  // namespace
}  // namespace fusedbun::model

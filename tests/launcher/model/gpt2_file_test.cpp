#include "fusedbun/launcher/model/gpt2_file.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

using checkpoint::SafetensorsFile;
using checkpoint::StoredTensor;
using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr Gpt2Config kSmall{.n_layer = 2, .n_head = 2, .n_embd = 8, .n_ctx = 6, .vocab = 256};

class Gpt2FileTest : public testing::Test {
 protected:
  Gpt2FileTest() { save_weights(saved_, *model_, metadata_of(*model_)); }

  /// The saved file, changed.
  std::filesystem::path rewritten(const std::function<void(std::vector<StoredTensor>&)>& change,
                                  checkpoint::Metadata metadata = {{"n_head", "2"}}) {
    const SafetensorsFile original(saved_);
    std::vector<StoredTensor> tensors = original.tensors();
    change(tensors);
    checkpoint::write_safetensors(folder_ / "rewritten", tensors, metadata);
    return folder_ / "rewritten";
  }
  void expect_same_weights(const WeightFiles& file) {
    Gpt2 loaded(sizes_of(file, {}).config, /*seed=*/99);
    load_weights(file, *loaded);
    const auto expected = model_->named_parameters();
    for (const auto& item : loaded->named_parameters()) {
      EXPECT_TRUE(at::equal(item.value(), expected[item.key()])) << item.key();
    }
  }
  void expect_refused(const std::filesystem::path& path, const std::string& why) {
    const WeightFiles file(path);
    const auto load = [&] {
      Gpt2 target(sizes_of(file, {}).config, 1);
      load_weights(file, *target);
    };
    EXPECT_THAT(load, ThrowsMessage<DataError>(HasSubstr(why)));
  }
  StoredTensor& named(std::vector<StoredTensor>& tensors, std::string_view name) {
    return *std::ranges::find(tensors, name, &StoredTensor::name);
  }

  support::ScratchFolder folder_;
  std::filesystem::path saved_ = folder_ / "model.safetensors";
  Gpt2 model_{kSmall, 3};
};

TEST_F(Gpt2FileTest, WhatIsSavedIsLoaded) {
  const WeightFiles file(saved_);
  EXPECT_EQ(sizes_of(file, {}).config, kSmall);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  expect_same_weights(file);
}

TEST_F(Gpt2FileTest, LinearWeightsAreTransposedInTheFile) {
  const SafetensorsFile file(saved_);
  EXPECT_EQ(file.find("h.0.attn.c_attn.weight")->shape, (std::vector<int64_t>{8, 24}))
      << "[in, out]";
  EXPECT_EQ(file.find("h.0.mlp.c_fc.weight")->shape, (std::vector<int64_t>{8, 32}));
  EXPECT_EQ(file.find("wte.weight")->shape, (std::vector<int64_t>{256, 8}));
  EXPECT_EQ(file.find("lm_head.weight"), nullptr) << "tied";
}

TEST_F(Gpt2FileTest, PrefixMaskAndTiedHeadAreUnderstood) {
  const std::vector<float> mask(36);
  const auto path = rewritten([&](std::vector<StoredTensor>& tensors) {
    StoredTensor head = named(tensors, "wte.weight");
    for (StoredTensor& tensor : tensors) tensor.name = "transformer." + tensor.name;
    head.name = "lm_head.weight";
    tensors.push_back(head);
    tensors.push_back({"transformer.h.0.attn.bias",
                       checkpoint::Dtype::F32,
                       {1, 1, 6, 6},
                       std::as_bytes(std::span(mask))});
  });
  expect_same_weights(WeightFiles(path));
}

TEST_F(Gpt2FileTest, HalfPrecisionIsRead) {
  const torch::Tensor half = model_->named_parameters()["ln_f.weight"].detach().to(at::kBFloat16);
  const auto path = rewritten([&](std::vector<StoredTensor>& tensors) {
    StoredTensor& tensor = named(tensors, "ln_f.weight");
    tensor.dtype = checkpoint::Dtype::BF16;
    tensor.bytes = {static_cast<const std::byte*>(half.data_ptr()), half.nbytes()};
  });
  expect_same_weights(WeightFiles(path));  // ones are exact in bfloat16
}

TEST_F(Gpt2FileTest, HeadsComeFromMetadataFlagOrWidth) {
  const WeightFiles with(saved_);
  EXPECT_EQ(sizes_of(with, HeadsSaid{2, "--heads"}).config.n_head, 2);
  EXPECT_THAT(
      [&] {
        sizes_of(with, HeadsSaid{4, "--heads"});
      },
      ThrowsMessage<ConfigError>(HasSubstr("--heads = 4: ")));
  EXPECT_FALSE(sizes_of(with, {}).heads_are_assumed);
  const WeightFiles without(rewritten([](auto&) {}, {}));
  EXPECT_EQ(sizes_of(without, HeadsSaid{4, "--heads"}).config.n_head, 4);
  EXPECT_FALSE(sizes_of(without, HeadsSaid{4, "--heads"}).heads_are_assumed);
  EXPECT_EQ(sizes_of(without, {}).config.n_head, 1) << "64 wide, as OpenAI's";
  EXPECT_TRUE(sizes_of(without, {}).heads_are_assumed);
  EXPECT_THAT(
      [&] {
        sizes_of(without, HeadsSaid{3, "--heads"});
      },
      ThrowsMessage<DataError>(HasSubstr("a width of 8 does not divide by 3 heads")));
  for (const char* bad : {"0", "-2", "3", "2x", "", "99999999999999999999"}) {
    const WeightFiles file(rewritten([](auto&) {}, {{"n_head", bad}}));
    EXPECT_THROW(sizes_of(file, {}).config, DataError) << bad;
  }
}

TEST_F(Gpt2FileTest, FilesThatDoNotFitAreRefusedByName) {
  const auto without = [&](const char* name) {
    return rewritten(
        [&](auto& tensors) { std::erase_if(tensors, [&](auto& t) { return t.name == name; }); });
  };
  expect_refused(without("wpe.weight"), "'wpe.weight' is missing");
  expect_refused(without("h.1.mlp.c_fc.bias"), "'h.1.mlp.c_fc.bias' is missing");
  expect_refused(without("h.0.ln_1.weight"), "'h.0.ln_1.weight' is missing");
  expect_refused(rewritten([&](auto& tensors) { named(tensors, "ln_f.bias").name = "extra"; }),
                 "'ln_f.bias' is missing");
  expect_refused(rewritten([&](auto& tensors) {
                   tensors.push_back(named(tensors, "ln_f.bias"));
                   tensors.back().name = "score.weight";
                 }),
                 "'score.weight' has no place");
  expect_refused(rewritten([&](auto& tensors) {
                   named(tensors, "h.0.attn.c_attn.weight").shape = {24, 8};
                 }),
                 "'h.0.attn.c_attn.weight' has the shape [8, 24], and the model's is [24, 8]");
  expect_refused(
      rewritten([&](auto& tensors) { named(tensors, "ln_f.bias").dtype = checkpoint::Dtype::I32; }),
      "'ln_f.bias' is I32");
  expect_refused(rewritten([&](auto& tensors) {
                   tensors.push_back(named(tensors, "wpe.weight"));
                   tensors.back().name = "lm_head.weight";
                 }),
                 "not tied");
}

}  // namespace
}  // namespace fusedbun::model

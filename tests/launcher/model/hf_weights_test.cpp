#include "fusedbun/launcher/model/hf_weights.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/model/llama.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

using checkpoint::StoredTensor;
using support::write_text;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

const LlamaConfig kSizes{.layers = 1,
                         .width = 16,
                         .mlp_width = 24,
                         .heads = 2,
                         .kv_heads = 1,
                         .head_width = 8,
                         .context = 8,
                         .vocab = 32,
                         .tied = true};

class HfWeights : public ::testing::Test {
 protected:
  HfWeights() {
    save_weights(folder_ / "whole", *model_, {});
    const checkpoint::SafetensorsFile whole(folder_ / "whole");
    // Half of the tensors in each of two files, and the index.
    std::string map;
    std::vector<StoredTensor> parts[2];
    for (const StoredTensor& tensor : whole.tensors()) {
      const size_t part = parts[0].size() > parts[1].size() ? 1 : 0;
      parts[part].push_back(tensor);
      map += (map.empty() ? "" : ", ") +
             ("\"" + tensor.name + "\": \"part" + std::to_string(part) + "\"");
    }
    for (int part = 0; part < 2; ++part)
      checkpoint::write_safetensors(folder_ / ("part" + std::to_string(part)), parts[part]);
    map_ = map;
    write_index(map);
  }

  void write_index(const std::string& map) {
    write_text(folder_ / kIndexName, "{\"metadata\": {}, \"weight_map\": {" + map + "}}");
  }
  void expect_refused(const std::filesystem::path& path, const std::string& why) {
    const auto load = [&] {
      Llama target(kSizes, 1);
      load_weights(WeightFiles(path), *target);
    };
    EXPECT_THAT(load, ThrowsMessage<DataError>(HasSubstr(why)));
  }
  /// The whole file, changed.
  std::filesystem::path rewritten(const std::function<void(std::vector<StoredTensor>&)>& change) {
    const checkpoint::SafetensorsFile whole(folder_ / "whole");
    std::vector<StoredTensor> tensors = whole.tensors();
    change(tensors);
    checkpoint::write_safetensors(folder_ / "rewritten", tensors);
    return folder_ / "rewritten";
  }

  support::ScratchFolder folder_;
  Llama model_{kSizes, 3};
  std::string map_;
};

TEST_F(HfWeights, AreReadFromOneFileAndFromSeveral) {
  for (const char* name : {"whole", kIndexName}) {
    Llama loaded(kSizes, 9);
    load_weights(WeightFiles(folder_ / name), *loaded);
    const auto expected = model_->named_parameters();
    for (const auto& item : loaded->named_parameters())
      EXPECT_TRUE(at::equal(item.value(), expected[item.key()])) << name << " " << item.key();
  }
}

TEST_F(HfWeights, AreSavedInTheirType) {
  model_->to(at::kBFloat16);
  save_weights(folder_ / "short", *model_, {});
  EXPECT_EQ(checkpoint::SafetensorsFile(folder_ / "short").tensors()[0].dtype,
            checkpoint::Dtype::BF16);
  Llama loaded(kSizes, 9);
  load_weights(WeightFiles(folder_ / "short"), *loaded);
  EXPECT_TRUE(at::equal(loaded->parameters()[0], model_->parameters()[0].to(at::kFloat)));
}

TEST_F(HfWeights, AnIndexThatDoesNotFitItsFilesIsRefused) {
  std::filesystem::remove(folder_ / "part1");
  expect_refused(folder_ / kIndexName, "part1, which ");
  write_index(map_ + ", \"extra\": \"part0\"");
  expect_refused(folder_ / kIndexName, "lacks 'extra'");
  write_index("\"a\": \"../part0\"");
  expect_refused(folder_ / kIndexName, "which is no file beside it");
  write_index("\"a\": 3");
  expect_refused(folder_ / kIndexName, "says 'a' is in 3");
  write_text(folder_ / kIndexName, "{\"weight_map\": {}}");
  expect_refused(folder_ / kIndexName, "it has no weight_map");
  write_text(folder_ / kIndexName, "[1]");
  expect_refused(folder_ / kIndexName, "is no index");
}

TEST_F(HfWeights, TensorsThatDoNotFitAreRefusedByName) {
  const auto named = [](std::vector<StoredTensor>& tensors,
                        std::string_view name) -> StoredTensor& {
    return *std::ranges::find(tensors, name, &StoredTensor::name);
  };
  expect_refused(rewritten([&](auto& tensors) {
                   std::erase_if(tensors, [](auto& t) { return t.name == "model.norm.weight"; });
                 }),
                 "'model.norm.weight' is missing");
  expect_refused(rewritten([&](auto& tensors) {
                   named(tensors, "model.layers.0.mlp.up_proj.weight").shape = {16, 24};
                 }),
                 "has the shape [16, 24], and the model's is [24, 16]");
  expect_refused(rewritten([&](auto& tensors) {
                   tensors.push_back(named(tensors, "model.norm.weight"));
                   tensors.back().name = "model.layers.1.input_layernorm.weight";
                 }),
                 "'model.layers.1.input_layernorm.weight' has no place");
  const at::Tensor other = at::ones({32, 16});
  expect_refused(
      rewritten([&](auto& tensors) {
        tensors.push_back({"lm_head.weight",
                           checkpoint::Dtype::F32,
                           {32, 16},
                           {static_cast<const std::byte*>(other.data_ptr()), other.nbytes()}});
      }),
      "not tied");
  at::Tensor bad = at::ones({16});
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  const auto path = rewritten([&](auto& tensors) {
    named(tensors, "model.norm.weight").bytes = {static_cast<const std::byte*>(bad.data_ptr()),
                                                 bad.nbytes()};
  });
  Llama target(kSizes, 1);
  EXPECT_THAT([&] { load_weights(WeightFiles(path), *target); },
              ThrowsMessage<ConfigError>(HasSubstr("'model.norm.weight' holds NaN or inf")));
}

}  // namespace
}  // namespace fusedbun::model

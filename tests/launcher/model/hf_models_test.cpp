// Our models beside those of the real transformers package: the same logits, loss and gradients; and it opens what we save.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>

#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/llama.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::model {
namespace {

namespace fs = std::filesystem;
using at::Tensor;
using checkpoint::SafetensorsFile;
using checkpoint::StoredTensor;

int oracle(const std::string& words) {
  const char* python = std::getenv("FUSEDBUN_PYTHON");
  const char* script = std::getenv("FUSEDBUN_ORACLE");
  if (python == nullptr || script == nullptr)
    throw std::runtime_error("run this test through ctest");
  return std::system(("'" + std::string(python) + "' '" + script + "' " + words).c_str());
}

Tensor read(const SafetensorsFile& file, const std::string& name) {
  const StoredTensor* const stored = file.find(name);
  if (stored == nullptr) throw std::runtime_error("the oracle wrote no " + name);
  Tensor values =
      at::empty(stored->shape, stored->dtype == checkpoint::Dtype::I64 ? at::kLong : at::kFloat);
  std::memcpy(values.data_ptr(), stored->bytes.data(), stored->bytes.size());
  return values;
}

std::shared_ptr<CausalLm> opened(const fs::path& folder) {
  const ModelConfig config = read_hf_config(folder / "config.json");
  std::shared_ptr<CausalLm> model;
  if (const auto* gpt2 = std::get_if<Gpt2Config>(&config)) {
    model = std::make_shared<Gpt2Impl>(*gpt2, 1);
  } else {
    model = std::make_shared<LlamaImpl>(std::get<LlamaConfig>(config), 1);
  }
  const bool is_one = fs::exists(folder / kWeightsName);
  load_weights(WeightFiles(folder / (is_one ? kWeightsName : kIndexName)), *model);
  return model;
}

void save(const fs::path& folder, const CausalLm& model, const ModelConfig& config) {
  fs::create_directories(folder);
  save_weights(folder / kWeightsName, model, metadata_of(model));
  std::ofstream(folder / "config.json") << hf_config_text(config, "float32");
}

double largest_difference(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>();
}

class HfModels : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new support::ScratchFolder;
    ASSERT_EQ(oracle("make '" + (*folder_ / "").string() + "'"), 0);
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::vector<fs::path> folders() {
    std::set<fs::path> sorted;
    for (const auto& entry : fs::directory_iterator(*folder_ / "")) sorted.insert(entry.path());
    return {sorted.begin(), sorted.end()};
  }
  static std::string name_here(const std::string& name) {
    constexpr std::string_view kPrefix = "transformer.";
    return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
  }

  static inline support::ScratchFolder* folder_ = nullptr;
};

TEST_F(HfModels, HaveTheirLogitsLossAndGradients) {
  EXPECT_GE(folders().size(), 12u);
  for (const fs::path& folder : folders()) {
    SCOPED_TRACE(folder.filename().string());
    const std::shared_ptr<CausalLm> model = opened(folder);
    const SafetensorsFile expected(folder / "expected.safetensors");
    const Tensor tokens = read(expected, "tokens");
    const Tensor logits = read(expected, "logits");
    EXPECT_LT(largest_difference(model->forward(tokens), logits), 1e-5);
    const Tensor loss = model->loss(tokens, read(expected, "targets"));
    EXPECT_LT(largest_difference(loss, read(expected, "loss")), 1e-5);
    loss.backward();
    const auto parameters = model->named_parameters();
    int64_t compared = 0;
    for (const StoredTensor& stored : expected.tensors()) {
      if (!stored.name.starts_with("gradient.")) continue;
      const std::string name = name_here(stored.name.substr(9));
      Tensor gradient = read(expected, stored.name);
      if (is_stored_transposed(*model, name) && gradient.dim() == 2) gradient = gradient.t();
      EXPECT_LT(largest_difference(parameters[name].grad(), gradient), 1e-4) << name;
      ++compared;
    }
    EXPECT_EQ(compared, std::ssize(parameters));
  }
}

TEST_F(HfModels, OpenWhatWeSaveToTheBit) {
  support::ScratchFolder saved;
  for (const fs::path& folder : folders()) {
    SCOPED_TRACE(folder.filename().string());
    const std::shared_ptr<CausalLm> model = opened(folder);
    const fs::path again = saved / folder.filename().string();
    save(again, *model, read_hf_config(folder / "config.json"));
    EXPECT_EQ(read_hf_config(again / "config.json"), read_hf_config(folder / "config.json"));
    const std::shared_ptr<CausalLm> ours = opened(again);
    const auto parameters = ours->named_parameters();
    for (const auto& parameter : model->named_parameters())
      EXPECT_TRUE(at::equal(parameters[parameter.key()], parameter.value())) << parameter.key();
  }
  ASSERT_EQ(oracle("equal '" + (*folder_ / "").string() + "' '" + (saved / "").string() + "'"), 0);
}

}  // namespace
}  // namespace fusedbun::model

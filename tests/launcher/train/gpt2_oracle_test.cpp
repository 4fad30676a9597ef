// The forward pass and the saved file against GPT-2 in numpy, which reads the file with Python's safetensors.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/utils.h>

#include <cstdlib>

#include "fusedbun/launcher/train/hf_gpt2.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

using checkpoint::Dtype;

class Gpt2Oracle : public testing::Test {
 protected:
  Gpt2Oracle() {
    const torch::NoGradGuard no_grad;
    at::manual_seed(11);
    // Far from the initial values, so that every bias, norm and scale matters.
    for (torch::Tensor& parameter : model_->parameters())
      parameter.add_(at::randn_like(parameter) * 0.1);
    save_hf(folder_ / "model", model_);
    tokens_ = at::randint(0, 256, {3, 20}, at::kLong);
    logits_ = model_->forward(tokens_).contiguous();
    checkpoint::write_safetensors(folder_ / "tokens",
                                  {{{"tokens", Dtype::I64, {3, 20}, bytes_of(tokens_)}}});
  }
  static std::span<const std::byte> bytes_of(const torch::Tensor& tensor) {
    return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
  }
  int oracle(const torch::Tensor& logits) {
    checkpoint::write_safetensors(folder_ / "logits",
                                  {{{"logits", Dtype::F32, {3, 20, 256}, bytes_of(logits)}}});
    const char* python = std::getenv("FUSEDBUN_PYTHON");
    const char* script = std::getenv("FUSEDBUN_ORACLE");
    if (python == nullptr || script == nullptr)
      throw std::runtime_error("run this test through ctest");
    std::string command = std::string("'") + python + "' '" + script + "'";
    for (const char* name : {"model", "tokens", "logits"})
      command += " '" + (folder_ / name).string() + "'";
    return std::system(command.c_str());
  }

  support::ScratchFolder folder_;
  Gpt2 model_{Gpt2Config{.n_layer = 3, .n_head = 4, .n_embd = 48, .n_ctx = 32, .vocab = 256}, 5};
  torch::Tensor tokens_, logits_;
};

TEST_F(Gpt2Oracle, LogitsAreNumpys) {
  EXPECT_EQ(oracle(logits_), 0);
}

TEST_F(Gpt2Oracle, NoticesADifference) {
  torch::Tensor changed = logits_.clone();
  changed[2][19][255] += 2e-4;
  EXPECT_NE(oracle(changed), 0);
}

}  // namespace
}  // namespace fusedbun::train

// Several documents in one sequence are computed as each of them alone.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>

#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/llama.h"

namespace fusedbun::model {
namespace {

using at::Tensor;

struct Named {
  std::string name;
  std::shared_ptr<CausalLm> model;
};

std::vector<Named> models() {
  const LlamaConfig llama{.layers = 2,
                          .width = 32,
                          .mlp_width = 48,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_width = 8,
                          .context = 24,
                          .vocab = 256,
                          .initial_deviation = 0.2};
  LlamaConfig windowed = llama;
  windowed.window = 3;
  windowed.is_windowed = {true, false};
  const Gpt2Config gpt2{.n_layer = 2, .n_head = 2, .n_embd = 32, .n_ctx = 24};
  return {{"gpt2", std::make_shared<Gpt2Impl>(gpt2, 3)},
          {"llama", std::make_shared<LlamaImpl>(llama, 3)},
          {"windowed", std::make_shared<LlamaImpl>(windowed, 3)}};
}

std::vector<Tensor> gradients_of(CausalLm& model, const Tensor& loss) {
  model.zero_grad();
  loss.backward();
  std::vector<Tensor> gradients;
  for (const Tensor& parameter : model.parameters()) gradients.push_back(parameter.grad().clone());
  return gradients;
}

TEST(PackedDocuments, AreComputedAsEachAlone) {
  const std::vector<std::vector<int64_t>> lengths = {{5, 1, 9, 3}, {18}};  // of two sequences
  for (const auto& [name, model] : models()) {
    at::manual_seed(1);
    const Tensor tokens = at::randint(0, 256, {2, 18}, at::kLong);
    const Tensor targets = at::randint(0, 256, {2, 18}, at::kLong);
    std::vector<Tensor> rows;
    Tensor alone = at::zeros({});
    for (int64_t row = 0; row < 2; ++row) {
      std::vector<Tensor> positions;
      int64_t begin = 0;
      for (const int64_t length : lengths[row]) {
        positions.push_back(at::arange(length, at::kLong));
        const auto part = [&](const Tensor& of) {
          return of.narrow(0, row, 1).narrow(1, begin, length);
        };
        alone = alone + model->loss(part(tokens), part(targets)) * (length / 36.0);
        begin += length;
      }
      rows.push_back(at::cat(positions));
    }
    const Tensor packed = model->loss(tokens, targets, at::stack(rows));
    EXPECT_NEAR(packed.item<double>(), alone.item<double>(), 1e-5) << name;
    EXPECT_GT(std::abs(packed.item<double>() - model->loss(tokens, targets).item<double>()), 1e-4)
        << name << ": without borders it is another number";
    const auto expected = gradients_of(*model, alone), found = gradients_of(*model, packed);
    for (size_t i = 0; i < expected.size(); ++i) {
      // Float32 sums of 36 terms, in another order.
      EXPECT_TRUE(at::allclose(found[i], expected[i], 1e-4, 1e-6))
          << name << " " << model->named_parameters().keys()[i];
    }
  }
}

TEST(PackedDocuments, OneDocumentASequenceIsNoBorder) {
  for (const auto& [name, model] : models()) {
    const Tensor tokens = at::randint(0, 256, {3, 10}, at::kLong);
    const Tensor positions = at::arange(10, at::kLong).expand({3, 10});
    EXPECT_NEAR(model->loss(tokens, tokens, positions).item<double>(),
                model->loss(tokens, tokens).item<double>(), 1e-5)
        << name;
  }
}

TEST(PackedDocuments, MaskSaysWhoSeesWhom) {
  const Tensor positions = at::tensor({0, 1, 0, 0, 1, 2}, at::kLong).unsqueeze(0);
  const Tensor expected = at::tensor({1, 0, 0, 0, 0, 0,  //
                                      1, 1, 0, 0, 0, 0,  //
                                      0, 0, 1, 0, 0, 0,  //
                                      0, 0, 0, 1, 0, 0,  //
                                      0, 0, 0, 1, 1, 0,  //
                                      0, 0, 0, 1, 1, 1},
                                     at::kLong)
                              .view({1, 1, 6, 6});
  EXPECT_TRUE(at::equal(document_mask(positions).to(at::kLong), expected));
}

}  // namespace
}  // namespace fusedbun::model

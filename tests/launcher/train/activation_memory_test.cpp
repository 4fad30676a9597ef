// What a forward and a backward pass allocate, against the forecast.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/utils.h>

#include "fusedbun/launcher/model/gpt2.h"
#include "fusedbun/launcher/model/llama.h"
#include "fusedbun/launcher/train/memory_forecast.h"
#include "tensor_bytes.h"

namespace fusedbun::train {
namespace {

torch::Tensor some_tokens(int64_t sequences, int64_t time) {
  return at::arange(sequences * time, at::kLong).mul(7).remainder(256).view({sequences, time});
}

struct Shape {
  model::Gpt2Config model;
  int64_t sequences;
};
const Shape kShapes[] = {
    {{.n_layer = 2, .n_head = 2, .n_embd = 64, .n_ctx = 64, .vocab = 256}, 4},
    {{.n_layer = 8, .n_head = 4, .n_embd = 64, .n_ctx = 128, .vocab = 256}, 4},
    {{.n_layer = 4, .n_head = 4, .n_embd = 256, .n_ctx = 128, .vocab = 256}, 8},
    {{.n_layer = 12, .n_head = 4, .n_embd = 128, .n_ctx = 256, .vocab = 256}, 4},
};

/// What is allocated at most in a forward and a backward pass, the gradients that stay left out.
int64_t peak_activations(model::CausalLm& model, int64_t sequences, Precision precision,
                         bool checkpointed_blocks, bool packs_documents) {
  at::set_num_threads(1);  // threads that wait for each other on a busy machine take a minute
  model::ForwardOptions forward{.checkpoints_activations = checkpointed_blocks};
  if (precision == Precision::bf16) model.to(at::kBFloat16);
  if (has_autocast(precision))
    forward.autocast = precision == Precision::bf16_autocast ? at::kBFloat16 : at::kHalf;
  model.set_forward(forward);
  // As the optimizer does, so that gradients do not cover what is measured.
  for (torch::Tensor& parameter : model.parameters()) {
    class Release : public torch::autograd::PostAccumulateGradHook {
      void operator()(const at::Tensor& tensor) override { tensor.mutable_grad().reset(); }
    };
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Release>());
  }
  const torch::Tensor tokens = some_tokens(sequences, model.context());
  const torch::Tensor targets = tokens.roll(1, 1);
  const torch::Tensor positions =
      packs_documents ? at::arange(model.context(), at::kLong).remainder(20).expand_as(tokens)
                      : torch::Tensor();
  const TensorBytes bytes;
  model.loss(tokens, targets, positions, {}, /*dropout_seed=*/1).backward();
  return bytes.peak();
}

int64_t peak_activations(const Shape& shape, Precision precision, bool checkpointed_blocks) {
  model::Gpt2 model(shape.model, 3);
  return peak_activations(*model, shape.sequences, precision, checkpointed_blocks,
                          /*packs_documents=*/false);
}

// Float32 is exact except for some kilobytes; in shorter types oneDNN allocates work space, which depends on the machine.
TEST(ActivationMemoryTest, IsAsForecast) {
  for (const Shape& shape : kShapes) {
    for (const Precision precision :
         {Precision::float32, Precision::bf16, Precision::bf16_autocast}) {
      // On processors without bfloat16 the larger shapes take a minute.
      if (precision != Precision::float32 && shape.model.n_embd > 64) continue;
      for (const bool checkpointed_blocks : {false, true}) {
        const int64_t forecast = forecast_memory({.model = model::shape_of(shape.model),
                                                  .precision = precision,
                                                  .checkpoints_activations = checkpointed_blocks,
                                                  .sequences = shape.sequences,
                                                  .context = shape.model.n_ctx})
                                     .activations;
        const int64_t measured = peak_activations(shape, precision, checkpointed_blocks);
        const double ratio = static_cast<double>(forecast) / static_cast<double>(measured);
        EXPECT_NEAR(ratio, 1, precision == Precision::float32 ? 0.005 : 0.25)
            << shape.model.n_layer << " layers, width " << shape.model.n_embd << ", "
            << name_of(precision) << (checkpointed_blocks ? ", checkpointed" : "") << ": "
            << forecast << " by forecast, " << measured << " measured";
      }
    }
  }
}

// On CPUs attention's weights are there whole where they have dropout.
TEST(ActivationMemoryTest, IsAsForecastWithDropout) {
  for (Shape shape : kShapes) {
    for (const model::DropoutRates& rates :
         {model::DropoutRates{.embeddings = 0.1, .attention = 0.1, .residuals = 0.1},
          model::DropoutRates{.residuals = 0.1}, model::DropoutRates{.attention = 0.1}}) {
      shape.model.dropout = rates;
      for (const bool checkpointed_blocks : {false, true}) {
        const int64_t forecast = forecast_memory({.model = model::shape_of(shape.model),
                                                  .checkpoints_activations = checkpointed_blocks,
                                                  .dropout = rates,
                                                  .sequences = shape.sequences,
                                                  .context = shape.model.n_ctx})
                                     .activations;
        const int64_t measured = peak_activations(shape, Precision::float32, checkpointed_blocks);
        EXPECT_NEAR(static_cast<double>(forecast) / static_cast<double>(measured), 1, 0.05)
            << shape.model.n_layer << " layers, width " << shape.model.n_embd << ", dropout of "
            << describe(rates) << (checkpointed_blocks ? ", checkpointed" : "") << ": " << forecast
            << " by forecast, " << measured << " measured";
      }
    }
  }
}

TEST(ActivationMemoryTest, OfALlamaIsAsForecast) {
  const model::LlamaConfig sizes{.layers = 8,
                                 .width = 96,
                                 .mlp_width = 256,
                                 .heads = 6,
                                 .kv_heads = 2,
                                 .head_width = 16,
                                 .context = 128,
                                 .tied = true};
  for (const bool packs_documents : {false, true}) {
    for (const bool checkpointed_blocks : {false, true}) {
      const int64_t forecast = forecast_memory({.model = model::shape_of(sizes),
                                                .checkpoints_activations = checkpointed_blocks,
                                                .sequences = 8,
                                                .context = sizes.context})
                                   .activations;
      model::Llama model(sizes, 3);
      const int64_t measured =
          peak_activations(*model, 8, Precision::float32, checkpointed_blocks, packs_documents);
      // The masks of packed documents are not in it.
      EXPECT_NEAR(static_cast<double>(forecast) / static_cast<double>(measured), 1, 0.04)
          << (packs_documents ? "packed" : "") << (checkpointed_blocks ? ", checkpointed" : "")
          << ": " << forecast << " by forecast, " << measured << " measured";
    }
  }
}

TEST(ActivationMemoryTest, CheckpointingTakesAFractionOfIt) {
  const Shape& deep = kShapes[3];
  const int64_t kept = peak_activations(deep, Precision::float32, false);
  const int64_t recomputed = peak_activations(deep, Precision::float32, true);
  EXPECT_LT(recomputed, kept / 4) << "of " << kept;
}

}  // namespace
}  // namespace fusedbun::train

#include "fusedbun/launcher/train/memory_forecast.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace fusedbun::train {
namespace {

using plan::GradientTransport;

// A model so small that every number can be worked out on paper: two embeddings of 16 x 8 and 4 x 8, a block of 12 matrices' worth of
// 8 x 8 and 13 vectors' worth of 8, a last layer norm of 2 x 8.
constexpr model::Gpt2Config kModel{.n_layer = 1, .n_head = 2, .n_embd = 8, .n_ctx = 4, .vocab = 16};
constexpr int64_t kParameters = 16 * 8 + 4 * 8 + 12 * 64 + 13 * 8 + 2 * 8;

MemoryQuestion question() {
  return {.model = model::shape_of(kModel),
          .parameters = kParameters,
          .sequences = 3,
          .context = 4,
          .transport = GradientTransport::shared_memory,
          .state_bytes = 1000};
}

TEST(MemoryForecastTest, ParametersAndStateAreWhatTheyAre) {
  MemoryQuestion asked = question();
  EXPECT_EQ(forecast_memory(asked).parameters, 1048 * 4);
  EXPECT_EQ(forecast_memory(asked).optimizer_state, 1000);
  asked.precision = Precision::bf16;
  EXPECT_EQ(forecast_memory(asked).parameters, 1048 * 2);
  asked.precision = Precision::fp16_autocast;
  EXPECT_EQ(forecast_memory(asked).parameters, 1048 * 4);
}

TEST(MemoryForecastTest, InAWindowARankHasItsGradientsAndReadsItsShareOfTheOthers) {
  MemoryQuestion asked = question();
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4);
  asked.world_size = 4;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4 + 3 * 262 * 4);
  asked.precision = Precision::bf16;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 2 + 3 * 262 * 2);
  asked.clips = true;  // sums of bfloat16 are float32
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 2 + 3 * 262 * 2 + 262 * 4);
}

TEST(MemoryForecastTest, FrozenParametersHaveNoGradients) {
  MemoryQuestion asked = question();
  asked.frozen_parameters = 48;
  asked.world_size = 4;
  EXPECT_EQ(forecast_memory(asked).parameters, 1048 * 4);
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1000 * 4 + 3 * 250 * 4);
  asked.accumulation = 2;  // all gradients stay
  EXPECT_EQ(forecast_memory(asked).gradients, 1000 * 4);
}

TEST(MemoryForecastTest, OnAGpuBucketsTakeTurns) {
  MemoryQuestion asked = question();
  asked.transport = GradientTransport::collective;
  asked.on_gpu = true;
  asked.bucket_bytes = 400;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 0);  // alone: read where they are
  EXPECT_EQ(forecast_memory(asked).gradients, 1048 * 4);
  asked.steps_in_backward = true;  // the largest matrix is 32 x 8
  EXPECT_EQ(forecast_memory(asked).gradients, 32 * 8 * 4 + 2 * 400);
  asked.world_size = 4;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 3 * 400 + 3 * 100);
  asked.steps_in_backward = false;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 3 * 400 + 262 * 4);
  EXPECT_EQ(forecast_memory(asked).gradients, 32 * 8 * 4);
  asked.precision = Precision::bf16;  // 200 elements in a bucket
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 3 * 200 * 4 + 262 * 4);
}

TEST(MemoryForecastTest, MessagesBringOneShareFromEachOtherRank) {
  MemoryQuestion asked = question();
  asked.transport = GradientTransport::point_to_point;
  asked.world_size = 2;
  // All segments are shorter than 64 KiB: packed for the way there and the way back.
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 524 * 4 + 2 * 1048 * 4);
  // d = 256: of a block the four matrices (256 KiB and more) go from where they are, the 13 d of vectors do not; of the
  // embeddings wte has 128 KiB a rank and wpe 2; and 2 d of the last layer norm.
  asked.model = model::shape_of(
      model::Gpt2Config{.n_layer = 1, .n_head = 2, .n_embd = 256, .n_ctx = 4, .vocab = 256});
  asked.parameters = 256 * 256 + 4 * 256 + 12 * 65536 + 13 * 256 + 2 * 256;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets,
            asked.parameters / 2 * 4 + 2 * (13 * 256 + 4 * 256 + 2 * 256) * 4);
  asked.bf16_on_wire = true;  // all are copied and rounded
  EXPECT_EQ(forecast_memory(asked).gradient_buckets,
            asked.parameters / 2 * 2 + asked.parameters * 2 + (13 + 4 + 2) * 256 * 4 +
                std::min(asked.parameters / 2 * 4, asked.bucket_bytes / 2));
}

TEST(MemoryForecastTest, CollectivesReduceInFloat32) {
  MemoryQuestion asked = question();
  asked.transport = GradientTransport::collective;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4);
  asked.world_size = 2;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4 + 524 * 4);
  asked.precision = Precision::bf16;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4 + 524 * 4 + 1048 * 2);
  asked.precision = Precision::float32;
  asked.is_sharded = false;
  EXPECT_EQ(forecast_memory(asked).gradient_buckets, 1048 * 4);
}

TEST(MemoryForecastTest, GradientsAreThereOneAtATimeOrAll) {
  MemoryQuestion asked = question();
  EXPECT_EQ(forecast_memory(asked).gradients, 4 * 8 * 8 * 4) << "c_fc's";
  EXPECT_TRUE(forecast_memory(asked).gradients_follow_activations);
  asked.transport = GradientTransport::point_to_point;
  EXPECT_EQ(forecast_memory(asked).gradients, 1048 * 4);
  asked.transport = GradientTransport::shared_memory;
  asked.accumulation = 2;
  EXPECT_EQ(forecast_memory(asked).gradients, 1048 * 4);
  EXPECT_FALSE(forecast_memory(asked).gradients_follow_activations);
}

TEST(MemoryForecastTest, ThePeakAddsUpWhatIsThereTogether) {
  MemoryForecast forecast{.parameters = 1,
                          .optimizer_state = 20,
                          .gradient_buckets = 300,
                          .gradients = 4000,
                          .activations = 50000,
                          .libraries = 600000};
  EXPECT_EQ(forecast.peak(), 654321);
  forecast.gradients_follow_activations = true;
  EXPECT_EQ(forecast.peak(), 650321);
  forecast.gradients = 60000;
  EXPECT_EQ(forecast.peak(), 660321);
  forecast.checkpoint_copy = 7000000;
  EXPECT_EQ(forecast.peak(), 660321);
  EXPECT_EQ(forecast.peak(/*saves_checkpoint=*/true), 7660321);
}

TEST(MemoryForecastTest, LibrariesTakeSomeOfTheHostAndNothingOfAGpu) {
  MemoryQuestion asked = question();
  EXPECT_EQ(forecast_memory(asked).libraries, 40 << 20);
  asked.on_gpu = true;
  EXPECT_EQ(forecast_memory(asked).libraries, 0);
}

TEST(MemoryForecastTest, ACheckpointIsWrittenFromACopyOfWhatTheRankHas) {
  MemoryQuestion asked = question();
  asked.world_size = 4;
  EXPECT_EQ(forecast_memory(asked).checkpoint_copy, 0);
  asked.keeps_checkpoints = true;
  EXPECT_EQ(forecast_memory(asked).checkpoint_copy, 262 * 4 + 1000);
  asked.on_gpu = true;
  EXPECT_EQ(forecast_memory(asked).checkpoint_copy, 0) << "it is the host's";
}

// How activations depend on what is asked; that the numbers are right is measured in activation_memory_test.cpp.
TEST(MemoryForecastTest, ActivationsGrowWithBlocksAndCheckpointedOnesByTheirInputsAlone) {
  const auto activations = [](int64_t layers, int64_t sequences, bool checkpointed_blocks) {
    MemoryQuestion asked = question();
    asked.model = model::shape_of(
        model::Gpt2Config{.n_layer = layers, .n_head = 4, .n_embd = 64, .n_ctx = 32, .vocab = 256});
    asked.sequences = sequences;
    asked.context = 32;
    asked.checkpoints_activations = checkpointed_blocks;
    return forecast_memory(asked).activations;
  };
  // 16 numbers of width 64, and per token 8 more, in float32.
  EXPECT_EQ(activations(5, 2, false) - activations(4, 2, false), 64 * (16 * 64 + 8) * 4);
  EXPECT_EQ(activations(5, 2, true) - activations(4, 2, true), 64 * 64 * 4);
  // The gradient of the output layer, 256 x 64, is there once however many tokens there are.
  EXPECT_EQ(activations(3, 6, false) - 256 * 64 * 4, 3 * (activations(3, 2, false) - 256 * 64 * 4));
}

TEST(MemoryForecastTest, DropoutKeepsItsMasks) {
  const auto more = [](bool on_gpu, const model::DropoutRates& rates) {
    MemoryQuestion asked = question();
    asked.on_gpu = on_gpu;
    asked.checkpoints_activations = false;
    const int64_t without = forecast_memory(asked).activations;
    asked.dropout = rates;
    return forecast_memory(asked).activations - without;
  };
  // 3 sequences of 4 tokens of width 8 are 96 values.
  EXPECT_EQ(more(false, {.residuals = 0.1}), 2 * 96 * 4);
  EXPECT_EQ(more(false, {.embeddings = 0.1}), 96 * 4);
  EXPECT_EQ(more(true, {.embeddings = 0.1, .attention = 0.1, .residuals = 0.1}), 3 * 96);
  // Two heads, 4 x 4 weights of each sequence.
  EXPECT_EQ(more(false, {.attention = 0.1}), 3 * (3 * 2 * 4 * 4) * 4);
}

TEST(MemoryForecastTest, IsToldInOneLine) {
  EXPECT_EQ(mebibytes_or_gibibytes(0), "0.0 MiB");
  EXPECT_EQ(mebibytes_or_gibibytes(1572864), "1.5 MiB");
  EXPECT_EQ(mebibytes_or_gibibytes(int64_t{5} << 29), "2.50 GiB");
  MemoryForecast forecast{.parameters = 1 << 20,
                          .optimizer_state = 2 << 20,
                          .gradient_buckets = 3 << 20,
                          .gradients = 4 << 20,
                          .activations = 5 << 20};
  EXPECT_EQ(describe(forecast),
            "15.0 MiB per rank: parameters 1.0 MiB, optimizer state 2.0 MiB, gradient "
            "buckets 3.0 MiB, gradients 4.0 MiB, activations 5.0 MiB");
  forecast.gradients_follow_activations = true;
  forecast.libraries = 40 << 20;
  EXPECT_EQ(describe(forecast),
            "51.0 MiB per rank: parameters 1.0 MiB, optimizer state 2.0 MiB, gradient "
            "buckets 3.0 MiB, gradients 4.0 MiB or activations 5.0 MiB (whichever is more), "
            "libraries 40.0 MiB");
  forecast.checkpoint_copy = 6 << 20;
  EXPECT_THAT(describe(forecast),
              testing::EndsWith("libraries 40.0 MiB; while a checkpoint is saved 6.0 MiB more"));
}

}  // namespace
}  // namespace fusedbun::train

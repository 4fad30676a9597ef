#include "fusedbun/launcher/train/run_report.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

namespace fusedbun::train {
namespace {

TEST(RunReportTest, MemoryIsThatOfTheRankThatTookMost) {
  constexpr int64_t kMebibyte = 1 << 20;
  EXPECT_EQ(memory_per_rank({100 * kMebibyte}, 90 * kMebibyte),
            "100.0 MiB at the peak; the forecast was 90.0 MiB (-10 %)");
  EXPECT_EQ(memory_per_rank({100 * kMebibyte, 200 * kMebibyte, 150 * kMebibyte}, 210 * kMebibyte),
            "200.0 MiB at the peak (rank 1); the forecast was 210.0 MiB (+5 %)");
}

TEST(RunReportTest, BFloat16WithoutInstructionsForItIsSaidToBeSlower) {
  const auto is_warned = [](Precision precision, std::optional<bool> has_products,
                            bool use_gpu = false) {
    TrainOptions options;
    options.precision = precision;
    options.use_gpu = use_gpu;
    return precision_sentence(options, has_products).find("slower than float32") !=
           std::string::npos;
  };
  for (const Precision precision : {Precision::bf16, Precision::bf16_autocast}) {
    EXPECT_TRUE(is_warned(precision, false));
    EXPECT_FALSE(is_warned(precision, true));
    EXPECT_FALSE(is_warned(precision, std::nullopt)) << "nobody knows";
    EXPECT_FALSE(is_warned(precision, false, /*use_gpu=*/true));
  }
  EXPECT_FALSE(is_warned(Precision::float32, false));
  EXPECT_EQ(precision_sentence({}, false), "");
}

}  // namespace
}  // namespace fusedbun::train

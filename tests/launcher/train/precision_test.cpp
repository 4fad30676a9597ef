#include "fusedbun/launcher/train/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

TEST(PrecisionTest, NamesAreReadAndWritten) {
  EXPECT_EQ(parse_precision("float32"), Precision::float32);
  EXPECT_EQ(parse_precision("bf16"), Precision::bf16);
  EXPECT_EQ(parse_precision("bf16-autocast"), Precision::bf16_autocast);
  EXPECT_EQ(parse_precision("fp16-autocast"), Precision::fp16_autocast);
  for (const Precision precision :
       {Precision::float32, Precision::bf16, Precision::bf16_autocast, Precision::fp16_autocast}) {
    EXPECT_EQ(parse_precision(std::string(name_of(precision))), precision);
  }
}

TEST(PrecisionTest, OtherNamesAreRefusedWithTheList) {
  for (const char* name : {"", "bf-16", "BF16", "fp16", "float16"}) {
    EXPECT_THAT([&] { parse_precision(name); },
                testing::ThrowsMessage<ConfigError>(
                    "--precision = '" + std::string(name) +
                    "': must be one of float32, bf16, bf16-autocast, fp16-autocast"));
  }
}

TEST(PrecisionTest, WhatEachOfThemIs) {
  EXPECT_EQ(parameter_bytes(Precision::bf16), 2);
  EXPECT_EQ(parameter_bytes(Precision::fp16_autocast), 4);
  EXPECT_TRUE(scales_loss(Precision::fp16_autocast));
  EXPECT_FALSE(scales_loss(Precision::bf16_autocast));
  EXPECT_TRUE(has_autocast(Precision::bf16_autocast));
  EXPECT_FALSE(has_autocast(Precision::bf16));
}

}  // namespace
}  // namespace fusedbun::train

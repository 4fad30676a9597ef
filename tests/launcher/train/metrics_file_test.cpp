#include "fusedbun/launcher/train/metrics_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

TEST(MetricsFile, EveryLineIsThereAtOnceAndIsJson) {
  const support::ScratchFolder folder;
  MetricsFile metrics(folder / "metrics.jsonl");
  metrics.write_validation(0, 5.5);
  metrics.write({.step = 3,
                 .loss = 2.25,
                 .lr = 1e-3,
                 .tokens_per_second = 1000,
                 .grad_norm = 0.5,
                 .revision = 1,
                 .skipped = 2});
  metrics.write({.step = 4, .loss = std::nan("")});
  std::istringstream lines(support::read_text(folder / "metrics.jsonl"));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, R"({"step":0,"validation_loss":5.5})");
  std::getline(lines, line);
  EXPECT_EQ(
      line,
      R"({"step":3,"loss":2.25,"lr":0.001,"tokens_per_second":1000.0,"grad_norm":0.5,"revision":1,"skipped":2})");
  std::getline(lines, line);
  EXPECT_TRUE(nlohmann::json::parse(line).at("loss").is_null());
}

TEST(MetricsFile, WhatCannotBeWrittenIsSaid) {
  EXPECT_THROW(MetricsFile("/proc/absent/metrics.jsonl"), IoError);
  MetricsFile full("/dev/full");
  EXPECT_THROW(full.write_validation(0, 1), IoError);
}

}  // namespace
}  // namespace fusedbun::train

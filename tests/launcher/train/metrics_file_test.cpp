#include "fusedbun/launcher/train/metrics_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

TEST(MetricsFile, EveryLineIsThereAtOnceAndIsJson) {
  const support::ScratchFolder folder;
  MetricsFile metrics(folder / "metrics.jsonl", 2, [](const std::string&) {});
  metrics.validated(0, 5.5);
  metrics.step_done({.step = 3,
                     .loss = 2.25,
                     .lr = 1e-3,
                     .tokens_per_second = 1000,
                     .grad_norm = 0.5,
                     .revision = 1,
                     .skipped = 2});
  metrics.step_done({.step = 4, .loss = std::nan("")});
  metrics.step_done(
      {.step = 5,
       .loss = 2,
       .loss_scale = monitoring::StepMetrics::Scale{.used = 65536, .good_steps = 17}});
  std::istringstream lines(support::read_text(folder / "metrics.jsonl"));
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, R"({"attempt":2,"step":0,"validation_loss":5.5})");
  std::getline(lines, line);
  EXPECT_EQ(
      line,
      R"({"attempt":2,"step":3,"loss":2.25,"lr":0.001,"tokens_per_second":1000.0,"grad_norm":0.5,"revision":1,"skipped":2})");
  std::getline(lines, line);
  EXPECT_TRUE(nlohmann::json::parse(line).at("loss").is_null());
  std::getline(lines, line);
  EXPECT_TRUE(line.ends_with(R"("skipped":0,"loss_scale":65536.0,"good_steps":17})")) << line;
}

TEST(MetricsFile, WhatCannotBeWrittenIsCounted) {
  std::string said;
  MetricsFile full("/dev/full", 1, [&](const std::string& sentence) { said += sentence; });
  EXPECT_EQ(full.description(), "/dev/full");
  full.validated(0, 1);
  full.step_done({.step = 1});
  EXPECT_EQ(full.description(), "/dev/full (2 lines were lost: they could not be written)");
  EXPECT_EQ(said.find("cannot write /dev/full"), 0U);
}

}  // namespace
}  // namespace fusedbun::train

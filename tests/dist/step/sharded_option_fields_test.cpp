// The options of a sharded optimizer that ranks must agree on: each is compared before the first step.
#include "fusedbun/dist/step/sharded_option_fields.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/step/step_trace.h"
#include "local_ranks.h"

namespace fusedbun {
namespace {

using ::testing::HasSubstr;

/// A field and a value that is not its default.
struct OtherValue {
  std::string name;
  std::function<void(ShardedOptions&)> set;
};

std::vector<OtherValue> fields_of_the_job() {
  return {
      {"min_rows_per_rank", [](ShardedOptions& o) { o.min_rows_per_rank = 1; }},
      {"bucket_bytes", [](ShardedOptions& o) { o.bucket_bytes = 1024; }},
      {"in_place_bytes", [](ShardedOptions& o) { o.in_place_bytes = 1; }},
      {"max_grad_norm", [](ShardedOptions& o) { o.max_grad_norm = 0.1; }},
      {"clip_by_previous_norm", [](ShardedOptions& o) { o.clip_by_previous_norm = true; }},
      {"gradient_divisor", [](ShardedOptions& o) { o.gradient_divisor = 2; }},
      {"dynamic_loss_scale",
       [](ShardedOptions& o) { o.dynamic_loss_scale = {.growth_interval = 7}; }},
      {"gradient_wire", [](ShardedOptions& o) { o.gradient_wire = GradientWire::bf16; }},
      {"update_wire", [](ShardedOptions& o) { o.update_wire = UpdateWire::bf16; }},
      {"transport",
       [](ShardedOptions& o) { o.transport = plan::GradientTransport::point_to_point; }},
      {"step_in_backward", [](ShardedOptions& o) { o.step_in_backward = true; }},
      {"host_window", [](ShardedOptions& o) { o.host_window = false; }},
      {"release", [](ShardedOptions& o) { o.release = GradientRelease::in_hook; }},
      {"broadcast_parameters", [](ShardedOptions& o) { o.broadcast_parameters = false; }},
  };
}

TEST(ShardedOptionFields, EachThatTheRanksShareHasALineOfItsOwn) {
  const std::vector<std::string> lines = describe_for_start({});
  const std::vector<OtherValue> fields = fields_of_the_job();
  ASSERT_EQ(lines.size(), fields.size()) << "give the new field a value here";
  for (size_t i = 0; i < fields.size(); ++i) {
    ShardedOptions other;
    fields[i].set(other);
    const std::vector<std::string> changed = describe_for_start(other);
    for (size_t line = 0; line < lines.size(); ++line) {
      EXPECT_EQ(changed[line] != lines[line], line == i) << fields[i].name << ": " << changed[line];
    }
    EXPECT_THAT(changed[i], ::testing::StartsWith(fields[i].name + " = "));
  }
}

TEST(ShardedOptionFields, WhatIsARanksOwnAffairHasNone) {
  StepTrace trace;
  ShardedOptions own;
  own.trace = &trace;
  own.notice = [](std::string_view) {};
  EXPECT_EQ(describe_for_start(own), describe_for_start({}));
}

TEST(ShardedOptionFields, NumbersAreWrittenExactly) {
  ShardedOptions near, nearer;
  near.max_grad_norm = 0.1;
  nearer.max_grad_norm = std::nextafter(0.1, 1);
  EXPECT_NE(describe_for_start(near), describe_for_start(nearer));
}

TEST(ShardedOptionFields, OneThatDiffersIsNamedOnEveryRank) {
  for (const OtherValue& other : fields_of_the_job()) {
    std::atomic<int> told = 0;
    testing::run_ranks(
        3,
        [&](comm::Communicator& communicator) {
          torch::OrderedDict<std::string, torch::Tensor> model;
          model.insert("w", at::ones({8, 8}).requires_grad_());
          ShardedOptions options;
          options.step_in_backward =
              other.name == "clip_by_previous_norm";  // which is for it alone
          if (communicator.rank() == 1) other.set(options);
          try {
            ShardedFusedbun optimizer(
                {&communicator, &communicator}, model,
                FusedbunOptions::recommended(0.1).nonfinite(Nonfinite::propagate), options);
            throw std::logic_error(other.name + " may differ between ranks");
          } catch (const ConfigError& error) {
            EXPECT_THAT(error.what(), HasSubstr(other.name + " = "));
            EXPECT_THAT(error.what(), HasSubstr("rank 1"));
            ++told;
          }
        },
        std::chrono::seconds(10));
    EXPECT_EQ(told, 3) << other.name;
  }
}

}  // namespace
}  // namespace fusedbun

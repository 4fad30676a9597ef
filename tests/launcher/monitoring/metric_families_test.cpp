#include "fusedbun/launcher/monitoring/metric_families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <limits>
#include <string>

namespace fusedbun::monitoring {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string text_of(const RunStatus& status) {
  return prometheus::TextSerializer().Serialize(families_of(status));
}

RunStatus running() {
  RunStatus status;
  status.versions = {{"fusedbun", "0.1.0"}, {"torch", "2.15.0"}};
  status.facts =
      RunFacts{.run_dir = "runs/\"a\"", .attempt = 2, .world_size = 2, .total_steps = 300};
  status.last_step = StepMetrics{.step = 41,
                                 .loss = 2.5,
                                 .lr = 0.001,
                                 .tokens_per_second = 1000,
                                 .grad_norm = 1.25,
                                 .revision = 3,
                                 .skipped = 4,
                                 .tokens = 128,
                                 .seconds = 0.3,
                                 .group_rates = {{"default", 0.001}, {"no_decay", 0.002}}};
  status.last_step_unix_time = 1'700'000'000.5;
  status.steps = 2;
  status.tokens = 256;
  status.step_durations.add(0.3);
  status.step_durations.add(300);
  return status;
}

TEST(MetricFamilies, SayWhatIsKnownOfARun) {
  RunStatus status = running();
  status.last_validation = ValidationResult{.step = 40, .loss = 2.75};
  status.last_checkpoint =
      SavedState{.job_step = 40, .bytes = 1234, .seconds = 0.5, .unix_time = 1'700'000'001};
  status.checkpoints = 1;
  const std::string text = text_of(status);
  for (const char* const line : {"fusedbun_build_info{version=\"0.1.0\",torch=\"2.15.0\"} 1\n",
                                 "fusedbun_run_info{run_dir=\"runs/\\\"a\\\"\",attempt=\"2\"} 1\n",
                                 "fusedbun_world_size 2\n",
                                 "fusedbun_planned_steps 300\n",
                                 "fusedbun_step 42\n",
                                 "fusedbun_steps_total 2\n",
                                 "fusedbun_tokens_total 256\n",
                                 "fusedbun_loss 2.5\n",
                                 "fusedbun_grad_norm 1.25\n",
                                 "fusedbun_config_revision 3\n",
                                 "fusedbun_skipped_steps_total 4\n",
                                 "fusedbun_learning_rate{group=\"default\"} 0.001\n",
                                 "fusedbun_learning_rate{group=\"no_decay\"} 0.002\n",
                                 "fusedbun_validation_loss 2.75\n",
                                 "fusedbun_checkpoint_step 40\n",
                                 "fusedbun_checkpoint_bytes 1234\n",
                                 "fusedbun_checkpoint_last_success_timestamp_seconds 1700000001\n",
                                 "fusedbun_last_step_timestamp_seconds 1700000000.5\n",
                                 "fusedbun_step_duration_seconds_bucket{le=\"0.25\"} 0\n",
                                 "fusedbun_step_duration_seconds_bucket{le=\"0.5\"} 1\n",
                                 "fusedbun_step_duration_seconds_bucket{le=\"250\"} 1\n",
                                 "fusedbun_step_duration_seconds_bucket{le=\"+Inf\"} 2\n",
                                 "fusedbun_step_duration_seconds_sum 300.3\n",
                                 "fusedbun_step_duration_seconds_count 2\n"})
    EXPECT_THAT(text, HasSubstr(line));
}

TEST(MetricFamilies, WhatIsNotKnownIsLeftOut) {
  const std::string before = text_of({});
  for (const char* const name : {"fusedbun_loss", "fusedbun_step ", "fusedbun_validation",
                                 "fusedbun_checkpoint_", "fusedbun_rank", "fusedbun_run_info"})
    EXPECT_THAT(before, Not(HasSubstr(name)));
  EXPECT_THAT(before, HasSubstr("fusedbun_steps_total 0\n"));

  RunStatus status = running();
  status.last_step->grad_norm = 0;
  const std::string text = text_of(status);
  EXPECT_THAT(text, Not(HasSubstr("grad_norm")));
  EXPECT_THAT(text, Not(HasSubstr("loss_scale")));
}

TEST(MetricFamilies, ARunWithoutCheckpointsHasNoneThatCouldBeOld) {
  RunStatus status = running();
  EXPECT_THAT(text_of(status), HasSubstr("fusedbun_checkpoints_total 0\n"));
  status.facts->keeps_checkpoints = false;
  EXPECT_THAT(text_of(status), Not(HasSubstr("checkpoint")));
}

TEST(MetricFamilies, ALossThatIsNoNumberIsShownAsSuch) {
  RunStatus status = running();
  status.last_step->loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(text_of(status), HasSubstr("fusedbun_loss Nan\n"));
}

TEST(MetricFamilies, OfRanks) {
  RunStatus status = running();
  plan::RankStatus late{.rank = 1,
                        .local_rank = 1,
                        .host = "node3",
                        .pid = 4711,
                        .device = "cpu",
                        .shard_bytes = 4096,
                        .job_step = 41,
                        .heartbeat_age_ms = 3500,
                        .liveness = plan::Liveness::late};
  late.usage.phase_us[static_cast<size_t>(plan::Phase::all_gather)] = 1'500'000;
  late.usage.sent_bytes = 77;
  late.usage.resident_bytes = 1 << 20;
  plan::RankStatus stalled{.rank = 0, .heartbeat_age_ms = 0, .liveness = plan::Liveness::stalled};
  status.ranks = {stalled, late};
  const std::string text = text_of(status);
  for (const char* const line :
       {"fusedbun_rank_info{rank=\"1\",host=\"node3\",pid=\"4711\",device=\"cpu\"} 1\n",
        "fusedbun_rank_alive{rank=\"0\"} 1\n", "fusedbun_rank_alive{rank=\"1\"} 0\n",
        "fusedbun_rank_step{rank=\"1\"} 41\n", "fusedbun_shard_bytes{rank=\"1\"} 4096\n",
        "fusedbun_peer_heartbeat_age_seconds{rank=\"1\"} 3.5\n",
        "fusedbun_comm_sent_bytes_total{rank=\"1\"} 77\n",
        "fusedbun_rank_resident_memory_bytes{rank=\"1\"} 1048576\n",
        "fusedbun_phase_seconds_total{rank=\"1\",phase=\"all_gather\"} 1.5\n"})
    EXPECT_THAT(text, HasSubstr(line));
  EXPECT_THAT(text, Not(HasSubstr("fusedbun_comm_sent_bytes_total{rank=\"0\"")))
      << "rank 0's are not counted";
  EXPECT_THAT(text, Not(HasSubstr("phase=\"update\"")));
}

}  // namespace
}  // namespace fusedbun::monitoring

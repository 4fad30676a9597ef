#include "fusedbun/launcher/launch/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

using testing::HasSubstr;

/// The words of a command line with one blank between them.
std::string line(Engine engine, EngineOptions options) {
  options.command = {"fusedbun", "train", "--steps", "3"};
  std::string text;
  for (const std::string& word : engine_words(engine, options))
    text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string refusal(Engine engine, const EngineOptions& options) {
  try {
    return line(engine, options);
  } catch (const UsageError& error) {
    return error.what();
  }
}

TEST(EngineWords, OfTorchrunOnOneHostAndOnSeveral) {
  EXPECT_EQ(line(Engine::torchrun, {.ranks_per_node = "2"}),
            "torchrun --standalone --nproc-per-node 2 --max-restarts 0 --no-python fusedbun train "
            "--steps 3");
  EXPECT_EQ(line(Engine::torchrun, {.nodes = 2,
                                    .ranks_per_node = "gpu",
                                    .rdzv_endpoint = "node0:29400",
                                    .log_dir = "logs",
                                    .max_restarts = 5}),
            "torchrun --nnodes 2 --nproc-per-node gpu --rdzv-backend c10d --rdzv-endpoint "
            "node0:29400 --rdzv-id fusedbun --max-restarts 5 --log-dir logs --tee 3 --no-python "
            "fusedbun train --steps 3");
  EXPECT_EQ(line(Engine::torchrun, {.nodes = 2,
                                    .node_rank = 1,
                                    .ranks_per_node = "4",
                                    .master_addr = "node0",
                                    .master_port = 29500}),
            "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 4 --master-addr node0 "
            "--master-port 29500 --max-restarts 0 --no-python fusedbun train --steps 3");
}

TEST(EngineWords, OfMpirun) {
  EXPECT_EQ(line(Engine::mpirun, {.hosts = "a:2,b:2", .grace_seconds = 29.5}),
            "mpirun --mca odls_base_sigkill_timeout 30 --host a:2,b:2 --bind-to none --tag-output "
            "fusedbun train --steps 3");
  EXPECT_EQ(
      line(Engine::mpirun, {.nodes = 3,
                            .ranks_per_node = "8",
                            .hostfile = "hosts",
                            .log_dir = "logs",
                            .is_root = true,
                            .forwarded = {"FUSEDBUN_LR"}}),
      "mpirun --allow-run-as-root --mca odls_base_sigkill_timeout 10 --hostfile hosts --map-by "
      "ppr:8:node -np 24 --bind-to none --output-filename logs --tag-output -x FUSEDBUN_LR "
      "fusedbun train --steps 3");
}

TEST(EngineWords, OfSrun) {
  EXPECT_EQ(line(Engine::srun, {}), "srun --kill-on-bad-exit=1 --label fusedbun train --steps 3");
  EXPECT_EQ(line(Engine::srun, {.nodes = 2, .ranks_per_node = "4", .log_dir = "logs"}),
            "srun --kill-on-bad-exit=1 --label --nodes 2 --ntasks-per-node=4 --output=logs/%t.log "
            "fusedbun train --steps 3");
}

TEST(EngineWords, WhatAnEngineDoesNotKnowIsRefused) {
  EXPECT_THAT(refusal(Engine::torchrun, {.hosts = "a,b"}), HasSubstr("--hosts means nothing"));
  EXPECT_THAT(refusal(Engine::mpirun, {.hosts = "a,b", .max_restarts = 1}),
              HasSubstr("--max-restarts means nothing to mpirun"));
  EXPECT_THAT(refusal(Engine::mpirun, {.ranks_per_node = "auto", .hosts = "a,b"}),
              HasSubstr("needs a number"));
  EXPECT_THAT(refusal(Engine::srun, {.master_addr = "a"}), HasSubstr("--master-addr means"));
  EXPECT_THAT(refusal(Engine::srun, {.node_rank = 0}), HasSubstr("--node-rank means"));
}

TEST(Engine, IsChosenByWhatWasSaid) {
  const auto chosen = [](const EngineOptions& options, const Variables& environment) {
    return resolve(Engine::automatic, options, environment);
  };
  const Variables allocation = {{"SLURM_JOB_ID", "7"}, {"SLURM_JOB_NUM_NODES", "2"}};
  EXPECT_EQ(chosen({}, {}), Engine::local);
  EXPECT_EQ(chosen({.hosts = "a"}, {}), Engine::mpirun);
  EXPECT_EQ(chosen({.hostfile = "a"}, allocation), Engine::mpirun);
  EXPECT_EQ(chosen({.rdzv_endpoint = "a:1"}, {}), Engine::torchrun);
  EXPECT_EQ(chosen({.rdzv_backend = "static"}, {}), Engine::local);
  EXPECT_EQ(chosen({}, allocation), Engine::srun);
  EXPECT_EQ(chosen({.node_rank = 0}, allocation), Engine::local);
  EXPECT_EQ(chosen({}, {{"SLURM_JOB_ID", "7"}, {"SLURM_JOB_NUM_NODES", "1"}}), Engine::local);
  Variables step = allocation;
  step["SLURM_STEP_ID"] = "0";
  EXPECT_EQ(chosen({}, step), Engine::local);
  EXPECT_EQ(resolve(Engine::local, {.hosts = "a"}, allocation), Engine::local);
}

TEST(Engine, HasAName) {
  for (const Engine engine :
       {Engine::automatic, Engine::local, Engine::torchrun, Engine::mpirun, Engine::srun})
    EXPECT_EQ(parse_engine(std::string(name_of(engine))), engine);
  EXPECT_THROW(parse_engine("slurm"), ConfigError);
}

}  // namespace
}  // namespace fusedbun::launch

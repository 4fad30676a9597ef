// Flags and environments -> the engine, and the command line that it is handed; expected lines as its manual has them.
#include "fusedbun/launcher/launch/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

using testing::HasSubstr;

const std::vector<std::string> kTrain = {"fusedbun", "train"};
const EngineHost kHost = {.cores = 8, .gpus = 2};
const EngineHost kAllocation = {
    .environment = {{"SLURM_JOB_ID", "7"}, {"SLURM_JOB_NUM_NODES", "2"}}, .cores = 8};
const EngineHost kStep = {.environment = {{"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"}}};

std::string line(const EngineRequest& request, const EngineHost& host = kHost) {
  EngineRequest complete = request;
  complete.command = kTrain;
  std::string text;
  for (const std::string& word : engine_words(choose_engine(complete, host), complete, host)) {
    text += (text.empty() ? "" : " ") + word;
  }
  return text;
}

template <class E>
std::string refusal(const EngineRequest& request, const EngineHost& host = kHost) {
  try {
    return "none: " + line(request, host);
  } catch (const E& error) {
    return error.what();
  }
}

TEST(ChooseEngine, TakesWhatIsThere) {
  EXPECT_EQ(choose_engine({}, kHost), Engine::local);
  EXPECT_EQ(choose_engine({}, kAllocation), Engine::srun);
  EXPECT_EQ(choose_engine({}, kStep), Engine::local) << "a task of a step is where srun has put it";
  EXPECT_EQ(choose_engine({.standalone = true}, kAllocation), Engine::local);
  EXPECT_EQ(choose_engine({.engine = Engine::local}, kAllocation), Engine::local);
  EXPECT_EQ(choose_engine({.hosts = "a:2,b:2"}, kAllocation), Engine::mpirun);
  EXPECT_EQ(choose_engine({.hostfile = "hosts"}, kHost), Engine::mpirun);
  EXPECT_EQ(choose_engine({.rdzv_endpoint = "a:29400"}, kHost), Engine::torchrun);
  EXPECT_EQ(choose_engine({.nodes = "2", .node_rank = 1, .master_addr = "a"}, kHost),
            Engine::local);
}

TEST(ChooseEngine, RefusesWhatContradicts) {
  EXPECT_THAT(refusal<UsageError>({.hosts = "a", .hostfile = "f"}), HasSubstr("give one of them"));
  EXPECT_THAT(refusal<UsageError>({.rdzv_endpoint = "a", .hosts = "a"}), HasSubstr("torchrun's"));
  EXPECT_THAT(refusal<ConfigError>({.engine = Engine::local, .hosts = "a"}),
              HasSubstr("--engine local"));
  EXPECT_THAT(refusal<ConfigError>({.engine = Engine::local, .rdzv_endpoint = "a"}),
              HasSubstr("--engine torchrun"));
  EXPECT_THAT(refusal<ConfigError>({.engine = Engine::mpirun, .master_addr = "a"}),
              HasSubstr("--master-addr"));
  EXPECT_THAT(refusal<ConfigError>({.engine = Engine::srun}), HasSubstr("salloc"));
  EXPECT_THROW(parse_engine("slurm"), UsageError);
}

/// What mpirun is told about ssh.
const std::string kSsh =
    "--mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes "
    "2 "
    "--mca plm_rsh_args -o ServerAliveInterval=5 -o ServerAliveCountMax=2 ";

TEST(EngineWords, OfMpirun) {
  EXPECT_EQ(line({.hosts = "a:2,b:2"}),
            "mpirun --host a:2,b:2 -np 4 --bind-to none --mca odls_base_sigkill_timeout 10 " +
                kSsh + "fusedbun train");
  EXPECT_EQ(line({.ranks = "2", .hosts = "a,b:4", .grace_seconds = 60.0}),
            "mpirun --host a:2,b:2 -np 4 --map-by ppr:2:node --bind-to none --mca "
            "odls_base_sigkill_timeout 60 " +
                kSsh + "-x OMP_NUM_THREADS=4 fusedbun train");
  EXPECT_EQ(line({.hosts = "[fd00::1],[fd00::2]:2"}),
            "mpirun --host [fd00::1]:1,[fd00::2]:2 -np 3 --bind-to none --mca "
            "odls_base_sigkill_timeout 10 " +
                kSsh + "fusedbun train");
  EXPECT_EQ(line({.ranks = "gpu", .hostfile = "hosts", .log_dir = "logs", .redirects = "3"}),
            "mpirun --hostfile hosts --map-by ppr:2:node --bind-to none --mca "
            "odls_base_sigkill_timeout 10 --output-filename logs:nocopy " +
                kSsh + "-x OMP_NUM_THREADS=4 fusedbun train");
  const EngineHost root = {
      .environment = {{"FUSEDBUN_RUN_DIR", "r"}, {"HOME", "/root"}, {"OMP_NUM_THREADS", "3"}},
      .is_root = true};
  EXPECT_EQ(line({.engine = Engine::mpirun, .ranks = "2"}, root),
            "mpirun --allow-run-as-root -np 2 --bind-to none --mca odls_base_sigkill_timeout 10 "
            "-x OMP_NUM_THREADS -x FUSEDBUN_RUN_DIR fusedbun train");
  const EngineHost own = {.environment = {{"OMPI_MCA_plm_rsh_args", "-p 2222"}}};
  EXPECT_EQ(line({.hosts = "a"}, own),
            "mpirun --host a:1 -np 1 --bind-to none --mca odls_base_sigkill_timeout 10 " +
                kSsh.substr(0, kSsh.find("--mca plm")) + "fusedbun train");
}

TEST(EngineWords, OfMpirunAreRefusedWhereItCannot) {
  for (const char* const hosts : {"", ",", "a:", "a:x", ":2", "a,,b", "a:12345"}) {
    EXPECT_THAT(refusal<UsageError>({.hosts = hosts}), HasSubstr("--hosts")) << hosts;
  }
  EXPECT_THAT(refusal<ConfigError>({.hosts = "a:0"}), HasSubstr("a gets no rank"));
  EXPECT_THAT(refusal<ConfigError>({.ranks = "4", .hosts = "a:4,b:2"}),
              HasSubstr("gives b only 2"));
  EXPECT_THAT(refusal<ConfigError>({.hosts = "a", .max_restarts = 1}), HasSubstr("--max-restarts"));
  EXPECT_THAT(refusal<ConfigError>({.nodes = "2", .hosts = "a"}), HasSubstr("--nnodes"));
  EXPECT_THAT(refusal<ConfigError>({.hosts = "a", .log_dir = "l", .redirects = "0:3"}),
              HasSubstr("--redirects"));
  EXPECT_THAT(refusal<UsageError>({.hosts = "a", .tee = "3"}), HasSubstr("need --log-dir"));
}

TEST(EngineWords, OfSrun) {
  EXPECT_EQ(line({}, kAllocation), "srun --kill-on-bad-exit=1 --label fusedbun train");
  EXPECT_EQ(line({.ranks = "4"}, kAllocation),
            "srun --kill-on-bad-exit=1 --ntasks=8 --ntasks-per-node=4 --label fusedbun train");
  EngineHost cores = kAllocation;
  cores.environment["SLURM_CPUS_PER_TASK"] = "6";
  EXPECT_EQ(line({.ranks = "2", .nodes = "1", .log_dir = "logs"}, cores),
            "srun --kill-on-bad-exit=1 --nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=6 "
            "--output=logs/%J.%t.stdout.log --error=logs/%J.%t.stderr.log fusedbun train");
  EXPECT_THAT(refusal<ConfigError>({.max_restarts = 1}, kAllocation), HasSubstr("requeue"));
  EXPECT_THAT(refusal<ConfigError>({.grace_seconds = 5.0}, kAllocation), HasSubstr("KillWait"));
}

TEST(EngineWords, OfTorchrun) {
  EXPECT_EQ(line({.engine = Engine::torchrun, .ranks = "2"}),
            "torchrun --no-python --standalone --nproc-per-node 2 fusedbun train");
  EXPECT_EQ(line({.ranks = "2",
                  .nodes = "1:4",
                  .rdzv_endpoint = "a:29400",
                  .rdzv_id = "j",
                  .max_restarts = 3}),
            "torchrun --no-python --nnodes 1:4 --nproc-per-node 2 --rdzv-backend c10d "
            "--rdzv-endpoint a:29400 --rdzv-id j "
            "--max-restarts 3 fusedbun train");
  EXPECT_EQ(line({.engine = Engine::torchrun,
                  .ranks = "auto",
                  .nodes = "2",
                  .node_rank = 1,
                  .master_addr = "a",
                  .log_dir = "l"}),
            "torchrun --no-python --nnodes 2 --nproc-per-node auto --node-rank 1 --master-addr a "
            "--log-dir l --redirects 0 --tee 3 "
            "fusedbun train");
  EXPECT_THAT(refusal<UsageError>({.engine = Engine::torchrun, .nodes = "2"}),
              HasSubstr("--rdzv-endpoint"));
  EXPECT_THAT(refusal<ConfigError>({.rdzv_endpoint = "a", .grace_seconds = 5.0}),
              HasSubstr("30 s"));
}

}  // namespace
}  // namespace fusedbun::launch

// Environments as the launchers make them -> who this process is.
#include "fusedbun/dist/plan/identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const Environment kTorchrun = {{"RANK", "1"},
                               {"WORLD_SIZE", "4"},
                               {"LOCAL_RANK", "1"},
                               {"LOCAL_WORLD_SIZE", "2"},
                               {"MASTER_ADDR", "host-a"},
                               {"MASTER_PORT", "29400"},
                               {"TORCHELASTIC_RUN_ID", "none"},
                               {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                               {"TORCHELASTIC_RESTART_COUNT", "2"}};
const Environment kOpenMpi = {
    {"OMPI_COMM_WORLD_RANK", "2"},       {"OMPI_COMM_WORLD_SIZE", "3"},
    {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
    {"PMIX_NAMESPACE", "1281294337"},    {"PMIX_RANK", "2"}};
const Environment kSlurmStep = {
    {"SLURM_PROCID", "3"},  {"SLURM_NTASKS", "8"},  {"SLURM_STEP_NUM_TASKS", "5"},
    {"SLURM_LOCALID", "1"}, {"SLURM_NODEID", "1"},  {"SLURM_STEP_TASKS_PER_NODE", "2(x2),1"},
    {"SLURM_JOB_ID", "77"}, {"SLURM_STEP_ID", "0"}, {"SLURM_RESTART_COUNT", "1"}};
/// What a batch script sees: SLURM_PROCID is 0, but no srun has started the other tasks.
const Environment kSlurmBatch = {
    {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_JOB_ID", "77"}};

Environment merged(std::initializer_list<Environment> environments) {
  Environment all;
  for (const Environment& environment : environments)
    all.insert(environment.begin(), environment.end());
  return all;
}

Environment with(Environment environment, const std::string& name, const std::string& value) {
  environment[name] = value;
  return environment;
}

Environment without(Environment environment, const std::string& name) {
  environment.erase(name);
  return environment;
}

std::string error_of(const Environment& environment, const IdentityFlags& flags = {}) {
  try {
    identify(environment, flags);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Identity, OfASingleProcess) {
  const Identity identity = identify({{"PATH", "/bin"}}, {});
  EXPECT_EQ(identity.launcher, Launcher::single);
  EXPECT_EQ(identity.rank, 0);
  EXPECT_EQ(identity.world_size, 1);
  EXPECT_EQ(identity.master_addr, "127.0.0.1");
  EXPECT_EQ(identity.master_port, 0);
  EXPECT_THAT(identity.ignored, IsEmpty());
}

TEST(Identity, OfTorchrun) {
  const Identity identity = identify(kTorchrun, {});
  EXPECT_EQ(identity.launcher, Launcher::torchrun);
  EXPECT_EQ(identity.rank, 1);
  EXPECT_EQ(identity.world_size, 4);
  EXPECT_EQ(identity.local_rank, 1);
  EXPECT_EQ(identity.local_world_size, 2);
  EXPECT_EQ(identity.master_addr, "host-a");
  EXPECT_EQ(identity.master_port, 29400);
  EXPECT_TRUE(identity.agent_serves_store);
  EXPECT_EQ(identity.run_id, "none");
  EXPECT_EQ(identity.restart_count, 2);
}

TEST(Identity, OfVariablesSetByHandWithoutAnAgent) {
  const Identity identity = identify({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}}, {});
  EXPECT_EQ(identity.launcher, Launcher::torchrun);
  EXPECT_FALSE(identity.agent_serves_store);
  EXPECT_EQ(identity.local_world_size, 2) << "at least those up to this one";
  EXPECT_EQ(identity.master_port, 0);
}

TEST(Identity, OfOpenMpi) {
  const Identity identity = identify(kOpenMpi, {});
  EXPECT_EQ(identity.launcher, Launcher::open_mpi);
  EXPECT_EQ(identity.rank, 2);
  EXPECT_EQ(identity.world_size, 3);
  EXPECT_EQ(identity.local_rank, 0);
  EXPECT_EQ(identity.local_world_size, 1);
  EXPECT_EQ(identity.run_id, "1281294337");
  EXPECT_FALSE(identity.agent_serves_store);
}

TEST(Identity, OfASlurmStep) {
  const Identity identity = identify(kSlurmStep, {});
  EXPECT_EQ(identity.launcher, Launcher::slurm);
  EXPECT_EQ(identity.rank, 3);
  EXPECT_EQ(identity.world_size, 5) << "the step's tasks, not the job's";
  EXPECT_EQ(identity.local_rank, 1);
  EXPECT_EQ(identity.local_world_size, 2);
  EXPECT_EQ(identity.run_id, "77");
  EXPECT_EQ(identity.restart_count, 1);
  EXPECT_EQ(identify(without(kSlurmStep, "SLURM_STEP_NUM_TASKS"), {}).world_size, 8);
}

TEST(Identity, RanksOfASlurmStepMeetOnItsFirstHost) {
  const Environment two_hosts = with(kSlurmStep, "SLURM_STEP_NODELIST", "node[07-08],gpu1");
  const Identity identity = identify(with(two_hosts, "SLURM_JOB_NODELIST", "node[01-20]"), {});
  EXPECT_EQ(identity.master_addr, "node07");
  EXPECT_EQ(identity.master_port, 10'000 + 77 * 101);
  EXPECT_EQ(identity.master_origin, "SLURM_STEP_NODELIST");
  EXPECT_NE(identify(with(two_hosts, "SLURM_STEP_ID", "1"), {}).master_port, identity.master_port)
      << "steps of one job that run at a time";
  EXPECT_EQ(identify(with(kSlurmStep, "SLURM_JOB_NODELIST", "a,b"), {}).master_addr, "a");
  EXPECT_EQ(identify(with(kSlurmStep, "SLURM_STEP_NODELIST", "only"), {}).master_addr, "127.0.0.1");
}

TEST(Identity, WhatIsGivenStandsAboveWhatSlurmSays) {
  const Environment step = with(kSlurmStep, "SLURM_STEP_NODELIST", "a,b");
  const Identity by_variables =
      identify(with(with(step, "MASTER_ADDR", "b"), "MASTER_PORT", "29400"), {});
  EXPECT_EQ(by_variables.master_addr, "b");
  EXPECT_EQ(by_variables.master_port, 29400);
  EXPECT_EQ(by_variables.master_origin, "");
  const Identity half = identify(with(step, "MASTER_ADDR", "b"), {});
  EXPECT_EQ(half.master_addr, "b");
  EXPECT_EQ(half.master_port, 10'000 + 77 * 101);
  EXPECT_EQ(identify(step, {.master_addr = "c", .master_port = 5}).master_addr, "c");
}

TEST(Identity, WhereTheUserPlacesTasksTheFirstHostMayNotHaveRank0) {
  const Environment step =
      with(with(kSlurmStep, "SLURM_STEP_NODELIST", "a,b"), "SLURM_DISTRIBUTION", "arbitrary");
  EXPECT_EQ(identify(step, {}).master_port, 0);
}

TEST(Identity, KubeflowsHostsNeedALauncher) {
  EXPECT_THAT(error_of({{"PET_NNODES", "2"}, {"PET_NODE_RANK", "0"}}), HasSubstr("PET_NNODES = 2"));
  EXPECT_EQ(identify({{"PET_NNODES", "1"}, {"PET_NPROC_PER_NODE", "4"}}, {}).world_size, 1);
  EXPECT_EQ(identify(with(kTorchrun, "PET_NNODES", "2"), {}).rank, 1);
}

TEST(Identity, ReadsTasksPerNodeOfEachNode) {
  const auto tasks_on = [](const std::string& node, const std::string& text) {
    Environment environment = with(kSlurmStep, "SLURM_NODEID", node);
    environment["SLURM_LOCALID"] = "0";
    environment["SLURM_STEP_TASKS_PER_NODE"] = text;
    return identify(environment, {}).local_world_size;
  };
  EXPECT_EQ(tasks_on("0", "4(x2),3"), 4);
  EXPECT_EQ(tasks_on("1", "4(x2),3"), 4);
  EXPECT_EQ(tasks_on("2", "4(x2),3"), 3);
  EXPECT_EQ(tasks_on("3", "4(x2),3"), 1) << "not told: at least this one";
  EXPECT_EQ(tasks_on("0", "6"), 6);
  EXPECT_THAT(error_of(with(kSlurmStep, "SLURM_STEP_TASKS_PER_NODE", "4(y2)")),
              HasSubstr("SLURM_STEP_TASKS_PER_NODE = '4(y2)'"));
  EXPECT_THAT(error_of(with(kSlurmStep, "SLURM_STEP_TASKS_PER_NODE", "many")),
              HasSubstr("SLURM_STEP_TASKS_PER_NODE = 'many'"));
}

TEST(Identity, AnAllocationWithoutAStepIsNone) {
  for (const Environment& environment : {kSlurmBatch, without(kSlurmBatch, "SLURM_PROCID")}) {
    const Identity identity = identify(environment, {});
    EXPECT_EQ(identity.launcher, Launcher::single);
    EXPECT_EQ(identity.world_size, 1);
    EXPECT_THAT(identity.ignored, ElementsAre(HasSubstr("without a step of srun")));
  }
}

TEST(Identity, TheFirstInOrderWinsAndTheOthersAreKept) {
  const Identity all = identify(merged({kTorchrun, kOpenMpi, kSlurmStep}), {});
  EXPECT_EQ(all.launcher, Launcher::torchrun);
  EXPECT_THAT(all.ignored, ElementsAre("Open MPI: rank 2 of 3 (OMPI_COMM_WORLD_RANK)",
                                       "Slurm: rank 3 of 5 (SLURM_PROCID)"));
  const Identity in_step = identify(merged({kOpenMpi, kSlurmStep}), {});
  EXPECT_EQ(in_step.launcher, Launcher::open_mpi);
  EXPECT_EQ(in_step.rank, 2);
  EXPECT_THAT(in_step.ignored, ElementsAre("Slurm: rank 3 of 5 (SLURM_PROCID)"));
  const Identity in_batch = identify(merged({kOpenMpi, kSlurmBatch}), {});
  EXPECT_EQ(in_batch.launcher, Launcher::open_mpi);
  EXPECT_THAT(in_batch.ignored, ElementsAre(HasSubstr("Slurm")));
}

TEST(Identity, NobodyMindsNonsenseOfAnIgnoredLauncher) {
  const Identity identity = identify(
      merged({kTorchrun,
              with(without(kOpenMpi, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_RANK", "x")}),
      {});
  EXPECT_EQ(identity.rank, 1);
  EXPECT_THAT(identity.ignored, ElementsAre("Open MPI: rank x of ? (OMPI_COMM_WORLD_RANK)"));
}

TEST(Identity, OfFlags) {
  const Identity identity =
      identify({}, {.rank = 1, .world_size = 2, .master_addr = "10.0.0.1", .master_port = 4000});
  EXPECT_EQ(identity.launcher, Launcher::flags);
  EXPECT_EQ(identity.rank, 1);
  EXPECT_EQ(identity.world_size, 2);
  EXPECT_EQ(identity.master_addr, "10.0.0.1");
  EXPECT_EQ(identity.master_port, 4000);
}

TEST(Identity, FlagsThatRepeatTheLauncherAreFine) {
  const Identity identity = identify(
      kTorchrun, {.rank = 1, .world_size = 4, .master_addr = "host-a", .master_port = 29400});
  EXPECT_EQ(identity.launcher, Launcher::torchrun);
  EXPECT_TRUE(identity.agent_serves_store);
  EXPECT_EQ(identify(kOpenMpi, {.world_size = 3}).rank, 2);
}

TEST(Identity, FlagsThatContradictTheLauncherAreRefused) {
  EXPECT_THAT(error_of(kTorchrun, {.rank = 2}),
              "--rank 2 contradicts torchrun, which says 1: leave the flag out");
  EXPECT_THAT(error_of(kOpenMpi, {.world_size = 4}),
              "--world-size 4 contradicts Open MPI, which says 3: leave the flag out");
  EXPECT_THAT(error_of(kSlurmStep, {.rank = 0, .world_size = 5}), HasSubstr("contradicts Slurm"));
  EXPECT_THAT(error_of(kTorchrun, {.master_addr = "host-b"}),
              HasSubstr("--master-addr host-b contradicts torchrun"));
  EXPECT_THAT(error_of(kTorchrun, {.master_port = 1}),
              HasSubstr("--master-port 1 contradicts torchrun"));
}

TEST(Identity, WhereRanksMeetComesFromFlagsWhereTheLauncherDoesNotSay) {
  const Environment mpi = with(with(kOpenMpi, "MASTER_ADDR", "host-c"), "MASTER_PORT", "5000");
  EXPECT_EQ(identify(mpi, {}).master_addr, "host-c");
  EXPECT_EQ(identify(mpi, {}).master_port, 5000);
  EXPECT_EQ(identify(mpi, {.master_addr = "host-d"}).master_addr, "host-d");
  EXPECT_EQ(identify(mpi, {.master_port = 6000}).master_port, 6000);
  EXPECT_FALSE(identify(with(mpi, "TORCHELASTIC_USE_AGENT_STORE", "True"), {}).agent_serves_store);
}

TEST(Identity, HalfAnIdentityIsRefused) {
  EXPECT_THAT(error_of({{"RANK", "0"}}), "RANK is set but WORLD_SIZE is not: set both, or neither");
  EXPECT_THAT(error_of({{"WORLD_SIZE", "2"}}),
              "WORLD_SIZE is set but RANK is not: set both, or neither");
  EXPECT_THAT(error_of(without(kOpenMpi, "OMPI_COMM_WORLD_SIZE")),
              HasSubstr("OMPI_COMM_WORLD_SIZE is not"));
  EXPECT_THAT(error_of({{"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "0"}}),
              HasSubstr("SLURM_NTASKS is not"));
  EXPECT_THAT(error_of({}, {.rank = 0}), "half an identity: --rank is given without --world-size");
  EXPECT_THAT(error_of({}, {.world_size = 2}),
              "half an identity: --world-size is given without --rank");
}

TEST(Identity, ValuesOutOfRangeAreRefused) {
  EXPECT_THAT(error_of(with(kTorchrun, "RANK", "4")),
              "RANK = '4': must be a whole number from 0 to 3");
  EXPECT_THAT(error_of(with(kTorchrun, "RANK", "-1")), HasSubstr("RANK = '-1'"));
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "0")), HasSubstr("WORLD_SIZE = '0'"));
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "4x")), HasSubstr("WORLD_SIZE = '4x'"));
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "")), HasSubstr("WORLD_SIZE = ''"));
  EXPECT_THAT(error_of(with(kTorchrun, "WORLD_SIZE", "99999999999")), HasSubstr("WORLD_SIZE"));
  EXPECT_THAT(error_of(with(kTorchrun, "LOCAL_RANK", "9")), HasSubstr("LOCAL_RANK"));
  EXPECT_THAT(error_of(with(kTorchrun, "LOCAL_WORLD_SIZE", "1")), HasSubstr("LOCAL_WORLD_SIZE"));
  EXPECT_THAT(error_of(with(kTorchrun, "MASTER_PORT", "65536")), HasSubstr("MASTER_PORT"));
  EXPECT_THAT(error_of(with(kTorchrun, "TORCHELASTIC_RESTART_COUNT", "?")),
              HasSubstr("RESTART_COUNT"));
  EXPECT_EQ(error_of({}, {.world_size = 0}), "--world-size 0: must be at least 1");
  EXPECT_EQ(error_of({}, {.rank = 2, .world_size = 2}),
            "--rank 2: must be from 0 to 1, below --world-size");
  EXPECT_EQ(error_of({}, {.master_port = 0}), "--master-port 0: must be from 1 to 65535");
}

TEST(Identity, LaunchersHaveNames) {
  EXPECT_EQ(name_of(Launcher::flags), "flags");
  EXPECT_EQ(name_of(Launcher::single), "single process");
}

// Launchers that are not known: each of their processes would take itself for a whole job.
TEST(Identity, AnUnknownLauncherIsRefusedByName) {
  EXPECT_THAT(error_of({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}}),
              HasSubstr("started by Intel MPI or MPICH (PMI_RANK = 1)"));
  EXPECT_THAT(error_of({{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}}), HasSubstr("PMI_RANK = 0"));
  EXPECT_THAT(error_of({{"FLUX_TASK_RANK", "0"}, {"FLUX_JOB_SIZE", "2"}}), HasSubstr("Flux"));
  EXPECT_THAT(error_of({{"PALS_RANKID", "3"}}), HasSubstr("PALS"));
  EXPECT_THAT(error_of({{"PMIX_RANK", "0"}}), HasSubstr("PMIx"));
}

TEST(Identity, AnUnknownLauncherOfOneProcessOrBesideAKnownOneIsNoHindrance) {
  EXPECT_EQ(identify({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}, {}).world_size, 1);
  EXPECT_EQ(identify({{"PALS_RANKID", "0"}, {"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}, {}).world_size,
            1);
  EXPECT_EQ(
      identify(
          {{"FLUX_TASK_RANK", "0"}, {"FLUX_JOB_SIZE", "1"}, {"PMI_RANK", "0"}, {"PMI_SIZE", "1"}},
          {})
          .world_size,
      1);
  const Environment pmi = {{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}};
  EXPECT_EQ(identify(merged({kTorchrun, pmi}), {}).launcher, Launcher::torchrun);
  EXPECT_EQ(identify(merged({kOpenMpi, pmi}), {}).launcher, Launcher::open_mpi);
  EXPECT_EQ(identify(merged({kSlurmStep, pmi}), {}).launcher, Launcher::slurm);
  EXPECT_EQ(identify(pmi, {.rank = 1, .world_size = 4}).rank, 1);
}

}  // namespace
}  // namespace fusedbun::plan

// Ranks that find each other: as threads of one process over a real store on loopback.
#include "fusedbun/dist/job/connect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun {
namespace {

using ::testing::HasSubstr;

/// Calls body(identity) on `size` threads whose identities meet at one store; returns what each threw.
std::vector<std::string> on_ranks(int size,
                                  const std::function<void(const plan::Identity&)>& body) {
  const auto store = comm::serve_store("127.0.0.1", 0);
  std::vector<std::string> errors(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      plan::Identity identity;
      identity.rank = rank;
      identity.world_size = size;
      identity.local_rank = rank;
      identity.local_world_size = size;
      identity.launcher = plan::Launcher::torchrun;
      identity.master_port = store->port();
      identity.agent_serves_store = true;
      try {
        body(identity);
      } catch (const Error& error) {
        errors[rank] = std::to_string(static_cast<int>(error.code())) + ": " + error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

constexpr std::chrono::seconds kTimeout{20};

TEST(Connect, OneProcessNeedsNoNetwork) {
  Connections alone = connect({}, {});
  EXPECT_EQ(alone.data().size(), 1);
  EXPECT_EQ(alone.data().backend(), "local");
  EXPECT_THAT(alone.choice.reason, HasSubstr("one process"));
}

TEST(Connect, RanksOnCpusMeetOverGlooAndSayWhy) {
  const auto errors = on_ranks(3, [](const plan::Identity& identity) {
    Connections connections = connect(identity, {.timeout = kTimeout});
    EXPECT_EQ(connections.choice.backend, plan::BackendRequest::gloo);
    EXPECT_THAT(connections.choice.reason, HasSubstr("rank 0 runs on the CPU"));
    double sum = identity.rank;
    connections.data().all_reduce(comm::Buffer::of(std::span(&sum, 1)), comm::ReduceOp::sum).wait();
    EXPECT_EQ(sum, 3);
  });
  EXPECT_THAT(errors, ::testing::Each(""));
}

TEST(Connect, ABackendThatCannotHoldIsRefusedOnEveryRankInTheSameWords) {
  const auto errors = on_ranks(2, [](const plan::Identity& identity) {
    connect(identity, {.backend = plan::BackendRequest::nccl, .timeout = kTimeout});
  });
  EXPECT_THAT(errors, ::testing::Each(
                          "78: backend nccl cannot be used: rank 0 runs on the CPU; NCCL connects "
                          "GPUs: add --device cuda"));
}

TEST(Connect, RanksThatAskForDifferentBackendsAreNamed) {
  const auto errors = on_ranks(2, [](const plan::Identity& identity) {
    const auto request =
        identity.rank == 1 ? plan::BackendRequest::gloo : plan::BackendRequest::automatic;
    connect(identity, {.backend = request, .timeout = kTimeout});
  });
  EXPECT_THAT(errors, ::testing::Each(HasSubstr("rank 1 asks for backend gloo, rank 0 for auto")));
}

TEST(Connect, WithoutAGpuEveryRankSaysWhichOneHasNone) {
  if (std::filesystem::exists("/dev/nvidiactl")) GTEST_SKIP() << "this machine has a driver";
  const auto errors = on_ranks(2, [](const plan::Identity& identity) {
    connect(identity, {.gpu = {.use = true}, .timeout = kTimeout});
  });
  EXPECT_THAT(errors,
              ::testing::Each(::testing::AllOf(
                  ::testing::StartsWith("71: rank 0 (on " + host_name() + ") has no GPU to use: "),
                  HasSubstr("driver"))));
}

TEST(Connect, RanksThatUseDifferentDevicesAreNamed) {
  const auto errors = on_ranks(2, [](const plan::Identity& identity) {
    connect(identity, {.gpu = {.use = identity.rank == 1}, .timeout = kTimeout});
  });
  EXPECT_THAT(errors,
              ::testing::Each("78: rank 1 runs on a GPU, rank 0 on the CPU: give all ranks the "
                              "same device"));
}

TEST(Connect, RanksWithoutAMeetingPlaceAreToldWhatToSet) {
  plan::Identity identity;
  identity.world_size = 2;
  try {
    connect(identity, {});
    ADD_FAILURE();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("set MASTER_ADDR and MASTER_PORT"));
  }
}

TEST(Job, AloneTrainsWithoutARunFolder) {
  std::vector<std::string> notices;
  Job job({.notice = [&](std::string_view sentence) { notices.emplace_back(sentence); }});
  torch::OrderedDict<std::string, torch::Tensor> model;
  model.insert("a", at::ones({8, 8}).requires_grad_());
  ShardedFusedbun optimizer(job.channels(), model, FusedbunOptions::recommended(0.1));
  job.serve(optimizer);
  model["a"].square().sum().backward();
  optimizer.step();
  optimizer.finish();
  job.finish();
  EXPECT_FALSE(at::equal(model["a"].detach(), at::ones({8, 8})));
  EXPECT_EQ(job.control_address(), "");
  EXPECT_THAT(notices, ::testing::ElementsAre(HasSubstr("no control plane")));
}

TEST(Job, ASecondJobInOneRunFolderIsRefused) {
  const support::ScratchFolder folder;
  Job first({.run_dir = folder / "run"});
  try {
    Job second({.run_dir = folder / "run"});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::unavailable);
    EXPECT_THAT(error.what(), HasSubstr("in use by pid"));
  }
}

}  // namespace
}  // namespace fusedbun

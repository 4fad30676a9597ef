// The choice over all small tables of capabilities, against the rule written down a second time.
#include "fusedbun/dist/plan/backend_choice.h"

#include <gmock/gmock.h>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

using testing::HasSubstr;

GpuUuid uuid(int number) {
  return {static_cast<uint8_t>(number + 1)};
}

/// Every capability of one rank, with two hosts and two GPUs that both have ordinal 0.
std::vector<Capability> all_capabilities() {
  std::vector<Capability> all;
  for (int bits = 0; bits < 32; ++bits) {
    for (int gpu = -1; gpu <= 1; ++gpu) {
      for (int request = 0; request <= 3; ++request) {
        all.push_back({.has_gloo = static_cast<uint8_t>(bits & 1),
                       .has_mpi = static_cast<uint8_t>(bits >> 1 & 1),
                       .has_nccl = static_cast<uint8_t>(bits >> 2 & 1),
                       .wants_gpu = static_cast<uint8_t>(bits >> 3 & 1),
                       .gpu_ordinal = std::min(gpu, 0),
                       .nccl_version = 23007,
                       .request = request,
                       .host_hash = static_cast<uint64_t>(bits >> 4 & 1),
                       .gpu_uuid = uuid(gpu)});
      }
    }
  }
  return all;
}

struct Expected {
  std::optional<BackendRequest> backend;
  int named_rank = 0;  ///< in the refusal; -1: it names a backend
  ExitCode code = ExitCode::config;
};

/// The first rank that the backend does not serve, or -1.
int first_unserved(const std::vector<Capability>& ranks, BackendRequest backend) {
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    bool serves = false;  // NCCL: the CPU's ranks never
    if (backend == BackendRequest::mpi) serves = ranks[rank].has_mpi;
    if (backend == BackendRequest::gloo) serves = ranks[rank].has_gloo;
    if (!serves) return rank;
  }
  return -1;
}

Expected expected_for_gpus(const std::vector<Capability>& ranks, BackendRequest asked) {
  const int count = static_cast<int>(ranks.size());
  for (int rank = 0; rank < count; ++rank) {
    if (ranks[rank].gpu_ordinal < 0) return {std::nullopt, rank, ExitCode::device};
  }
  const bool alone_without_nccl =
      count == 1 && (asked == BackendRequest::gloo || asked == BackendRequest::mpi ||
                     (asked == BackendRequest::automatic && !ranks[0].has_nccl));
  if (alone_without_nccl) return {BackendRequest::gloo};
  if (asked == BackendRequest::gloo || asked == BackendRequest::mpi) return {std::nullopt, -1};
  for (int rank = 0; rank < count; ++rank) {
    if (!ranks[rank].has_nccl) return {std::nullopt, rank};
    if (ranks[rank].nccl_version != ranks[0].nccl_version) return {std::nullopt, rank};
  }
  for (int rank = 0; rank < count; ++rank) {
    for (int other = 0; other < rank; ++other) {
      if (ranks[other].gpu_uuid != ranks[rank].gpu_uuid) continue;
      if (ranks[0].shares_gpu && ranks[0].nccl_version >= 23000) return {BackendRequest::nccl};
      return {std::nullopt, rank};
    }
  }
  return {BackendRequest::nccl};
}

Expected expected_choice(const std::vector<Capability>& ranks) {
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    if (ranks[rank].request != ranks[0].request) return {std::nullopt, rank};
    if (ranks[rank].wants_gpu != ranks[0].wants_gpu) return {std::nullopt, rank};
    if (ranks[rank].shares_gpu != ranks[0].shares_gpu) return {std::nullopt, rank};
  }
  const auto asked = static_cast<BackendRequest>(ranks[0].request);
  if (ranks[0].wants_gpu) return expected_for_gpus(ranks, asked);
  if (asked != BackendRequest::automatic) {
    const int unserved = first_unserved(ranks, asked);
    if (unserved < 0) return {asked};
    return {std::nullopt, unserved};
  }
  for (BackendRequest backend : {BackendRequest::mpi, BackendRequest::gloo}) {
    if (first_unserved(ranks, backend) < 0) return {backend};
  }
  return {std::nullopt, first_unserved(ranks, BackendRequest::gloo)};
}

void check(const std::vector<Capability>& ranks) {
  const Expected expected = expected_choice(ranks);
  try {
    const BackendChoice choice = choose_backend(ranks);
    ASSERT_TRUE(expected.backend.has_value()) << choice.reason;
    ASSERT_EQ(choice.backend, *expected.backend);
    const bool alone = ranks[0].wants_gpu && choice.backend == BackendRequest::gloo;
    ASSERT_EQ(choice.reason.substr(0, choice.reason.find(':')),
              alone ? "local" : name_of(choice.backend));
    ASSERT_EQ(choice.reason.find('\n'), std::string::npos);
  } catch (const Error& error) {
    ASSERT_FALSE(expected.backend.has_value()) << error.what();
    ASSERT_EQ(error.code(), expected.code);
    const std::string rank = std::to_string(expected.named_rank);
    const bool names_rank = expected.named_rank >= 0;
    ASSERT_THAT(error.what(), HasSubstr(names_rank ? "rank " + rank : "it moves host memory"));
  }
}

TEST(BackendChoice, AllTablesOfOneAndTwoRanks) {
  const std::vector<Capability> all = all_capabilities();
  for (const Capability& first : all) {
    check({first});
    for (const Capability& second : all) {
      check({first, second});
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(BackendChoice, RandomTablesOfUpToFiveRanks) {
  const uint64_t seed = test_seed();
  Random random(seed);
  const std::vector<Capability> all = all_capabilities();
  for (int round = 0; round < 50'000 && !testing::Test::HasFailure(); ++round) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " round " + std::to_string(round));
    std::vector<Capability> ranks(between(random, 3, 5), all[between(random, 0, all.size() - 1)]);
    if (chance(random, 0.3)) {
      for (Capability& rank : ranks) {
        rank.shares_gpu = 1;
        if (chance(random, 0.1)) rank.nccl_version = 22907;
      }
    }
    for (size_t rank = 1; rank < ranks.size(); ++rank) {
      if (chance(random, 0.7)) ranks[rank].gpu_uuid = uuid(static_cast<int>(between(random, 0, 8)));
      if (chance(random, 0.1)) ranks[rank].gpu_ordinal = -1;
      if (chance(random, 0.2)) ranks[rank].host_hash ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_gloo ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_mpi ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_nccl ^= 1;
      if (chance(random, 0.03)) ranks[rank].wants_gpu ^= 1;
      if (chance(random, 0.03)) ranks[rank].shares_gpu ^= 1;
      if (chance(random, 0.03)) ranks[rank].request = static_cast<int32_t>(between(random, 0, 3));
    }
    check(ranks);
  }
}

Capability gpu_rank(int number) {
  return {.has_nccl = 1,
          .wants_gpu = 1,
          .gpu_ordinal = 0,
          .nccl_version = 23007,
          .gpu_uuid = uuid(number),
          .host = "node3"};
}

TEST(BackendChoice, SaysWhyInOneLine) {
  const Capability cpu = {};
  Capability started_by_mpi = cpu, shares = gpu_rank(0);
  started_by_mpi.has_mpi = 1;
  shares.shares_gpu = 1;
  const auto reason = [](const std::vector<Capability>& ranks) {
    return choose_backend(ranks).reason;
  };
  EXPECT_EQ(reason({cpu, cpu}),
            "gloo: rank 0 runs on the CPU and rank 0 was not started by Open MPI, or has no MPI "
            "built in");
  EXPECT_EQ(reason({started_by_mpi, started_by_mpi}),
            "mpi: Open MPI started this job and rank 0 runs on the CPU");
  EXPECT_EQ(reason({gpu_rank(0), gpu_rank(1)}), "nccl: every rank has a GPU of its own")
      << "both are number 0 of what their processes see";
  EXPECT_EQ(reason({shares, shares}), "nccl: ranks share a GPU, as asked for");
}

TEST(BackendChoice, ContainersOfOneMachineMayHaveTheSameGpu) {
  Capability elsewhere = gpu_rank(0);
  elsewhere.host_hash = 1;
  elsewhere.host = "pod7";
  EXPECT_THAT(
      [&] {
        choose_backend(std::vector{gpu_rank(0), elsewhere});
      },
      testing::ThrowsMessage<ConfigError>(
          HasSubstr("rank 0 (on node3) and rank 1 (on pod7) are on one GPU, GPU-0100")));
}

std::string refusal_of(const std::vector<Capability>& ranks) {
  try {
    return choose_backend(ranks).reason;
  } catch (const Error& error) {
    return std::to_string(static_cast<int>(error.code())) + ": " + error.what();
  }
}

TEST(BackendChoice, RefusalsNameTheRank) {
  Capability asks_mpi = {.has_mpi = 1, .request = static_cast<int32_t>(BackendRequest::mpi)};
  Capability not_started = asks_mpi;
  not_started.has_mpi = 0;
  EXPECT_EQ(refusal_of({asks_mpi, not_started}),
            "78: backend mpi cannot be used: rank 1 was not started by Open MPI, or has no MPI "
            "built in");
  EXPECT_EQ(refusal_of({asks_mpi, {}}),
            "78: rank 1 asks for backend auto, rank 0 for mpi: give all ranks the same --backend");
  EXPECT_EQ(refusal_of({{}, {.wants_gpu = 1}}),
            "78: rank 1 runs on a GPU, rank 0 on the CPU: give all ranks the same device");
  EXPECT_EQ(refusal_of({{.request = static_cast<int32_t>(BackendRequest::nccl)}}),
            "78: backend nccl cannot be used: rank 0 runs on the CPU; NCCL connects GPUs: add "
            "--device cuda");
  EXPECT_THAT(refusal_of({{.request = 7}}), HasSubstr("rank 0 asks for backend number 7"));
  EXPECT_THAT(refusal_of({{}, {.has_gloo = 0}}), HasSubstr("rank 1 has no Gloo built in"));
}

TEST(BackendChoice, RefusalsOfGpusNameRankHostAndGpu) {
  EXPECT_EQ(refusal_of({gpu_rank(0), gpu_rank(1), gpu_rank(0)}),
            "78: rank 0 (on node3) and rank 2 (on node3) are on one GPU, "
            "GPU-01000000-0000-0000-0000-000000000000: "
            "start one rank per GPU, give each rank one of its own (CUDA_VISIBLE_DEVICES), or let "
            "them share it (--share-gpu)");
  Capability old = gpu_rank(0);
  old.shares_gpu = 1;
  old.nccl_version = 22907;
  EXPECT_EQ(refusal_of({old, old}),
            "78: rank 0 (on node3) and rank 1 (on node3) are on one GPU, "
            "GPU-01000000-0000-0000-0000-000000000000, "
            "which NCCL 2.29.7 cannot do (2.30 can): start one rank per GPU");
  Capability none = gpu_rank(0);
  none.gpu_ordinal = -1;
  none.gpu_problem = "no NVIDIA driver is installed here";
  EXPECT_EQ(refusal_of({gpu_rank(0), none}),
            "71: rank 1 (on node3) has no GPU to use: no NVIDIA driver is installed here; --device "
            "cpu trains without");
  Capability other_nccl = gpu_rank(1);
  other_nccl.nccl_version = 22907;
  EXPECT_EQ(refusal_of({gpu_rank(0), other_nccl}),
            "78: rank 1 (on node3) has NCCL 2.29.7, rank 0 (on node3) NCCL 2.30.7: install the "
            "same LibTorch on all hosts");
  Capability no_nccl = gpu_rank(1);
  no_nccl.has_nccl = 0;
  EXPECT_THAT(refusal_of({gpu_rank(0), no_nccl}), HasSubstr("rank 1 (on node3) has no NCCL"));
  Capability over_gloo = gpu_rank(0);
  over_gloo.request = static_cast<int32_t>(BackendRequest::gloo);
  EXPECT_THAT(refusal_of({over_gloo, over_gloo}),
              HasSubstr("78: backend gloo cannot be used: it moves host memory"));
  Capability shares = gpu_rank(1);
  shares.shares_gpu = 1;
  EXPECT_EQ(refusal_of({gpu_rank(0), shares}),
            "78: rank 1 may share a GPU, rank 0 may not: give all ranks the same --share-gpu");
}

TEST(BackendChoice, ATextThatIsTooLongIsCut) {
  EXPECT_EQ(ShortText<4>("abcdef").view(), "abc");
  EXPECT_TRUE(ShortText<4>("").empty());
}

TEST(BackendChoice, NamesAreReadAndWritten) {
  for (BackendRequest request : {BackendRequest::automatic, BackendRequest::gloo,
                                 BackendRequest::mpi, BackendRequest::nccl}) {
    EXPECT_EQ(parse_backend(name_of(request)), request);
  }
  EXPECT_THROW(parse_backend("NCCL"), ConfigError);
  EXPECT_THROW(parse_backend(""), ConfigError);
}

}  // namespace
}  // namespace fusedbun::plan

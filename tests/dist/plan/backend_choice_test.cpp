// The choice over all small tables of capabilities, against the rule written down a second time.
#include "fusedbun/dist/plan/backend_choice.h"

#include <gmock/gmock.h>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

using testing::HasSubstr;

/// Every capability of one rank, with two hosts and two GPUs.
std::vector<Capability> all_capabilities() {
  std::vector<Capability> all;
  for (int bits = 0; bits < 32; ++bits) {
    for (int gpu = -1; gpu <= 1; ++gpu) {
      for (int request = 0; request <= 3; ++request) {
        all.push_back({.has_gloo = static_cast<uint8_t>(bits & 1),
                       .has_mpi = static_cast<uint8_t>(bits >> 1 & 1),
                       .has_nccl = static_cast<uint8_t>(bits >> 2 & 1),
                       .wants_gpu = static_cast<uint8_t>(bits >> 3 & 1),
                       .host_hash = static_cast<uint64_t>(bits >> 4 & 1),
                       .gpu_index = gpu,
                       .request = request});
      }
    }
  }
  return all;
}

struct Expected {
  std::optional<BackendRequest> backend;
  int named_rank = 0;  ///< in the refusal
};

bool nccl_serves(const std::vector<Capability>& ranks, int rank) {
  const Capability& self = ranks[rank];
  int on_this_gpu = 0;
  for (const Capability& other : ranks) {
    on_this_gpu += other.host_hash == self.host_hash && other.gpu_index == self.gpu_index;
  }
  return self.has_nccl && self.wants_gpu && self.gpu_index >= 0 && on_this_gpu == 1;
}

/// The first rank that the backend does not serve, or -1.
int first_unserved(const std::vector<Capability>& ranks, BackendRequest backend) {
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    bool serves = false;
    if (backend == BackendRequest::nccl) serves = nccl_serves(ranks, rank);
    if (backend == BackendRequest::mpi) serves = ranks[rank].has_mpi;
    if (backend == BackendRequest::gloo) serves = ranks[rank].has_gloo;
    if (!serves) return rank;
  }
  return -1;
}

Expected expected_choice(const std::vector<Capability>& ranks) {
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank) {
    if (ranks[rank].request != ranks[0].request) return {std::nullopt, rank};
    if (ranks[rank].wants_gpu != ranks[0].wants_gpu) return {std::nullopt, rank};
  }
  const auto asked = static_cast<BackendRequest>(ranks[0].request);
  if (asked != BackendRequest::automatic) {
    const int unserved = first_unserved(ranks, asked);
    if (unserved < 0) return {asked};
    return {std::nullopt, unserved};
  }
  for (BackendRequest backend : {BackendRequest::nccl, BackendRequest::mpi, BackendRequest::gloo}) {
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
    ASSERT_EQ(choice.reason.substr(0, choice.reason.find(':')), name_of(choice.backend));
    ASSERT_EQ(choice.reason.find('\n'), std::string::npos);
  } catch (const ConfigError& error) {
    ASSERT_FALSE(expected.backend.has_value()) << error.what();
    ASSERT_THAT(error.what(), HasSubstr("rank " + std::to_string(expected.named_rank)));
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
    for (size_t rank = 1; rank < ranks.size(); ++rank) {
      if (chance(random, 0.5)) ranks[rank].gpu_index = static_cast<int32_t>(between(random, -1, 4));
      if (chance(random, 0.2)) ranks[rank].host_hash ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_gloo ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_mpi ^= 1;
      if (chance(random, 0.1)) ranks[rank].has_nccl ^= 1;
      if (chance(random, 0.03)) ranks[rank].wants_gpu ^= 1;
      if (chance(random, 0.03)) ranks[rank].request = static_cast<int32_t>(between(random, 0, 3));
    }
    check(ranks);
  }
}

TEST(BackendChoice, SaysWhyInOneLine) {
  const Capability cpu = {}, gpu = {.has_nccl = 1, .wants_gpu = 1, .gpu_index = 0};
  Capability started_by_mpi = cpu, other_gpu = gpu, no_gpu = gpu;
  started_by_mpi.has_mpi = 1;
  other_gpu.gpu_index = 1;
  no_gpu.gpu_index = -1;
  const auto reason = [](const std::vector<Capability>& ranks) {
    return choose_backend(ranks).reason;
  };
  EXPECT_EQ(reason({cpu, cpu}),
            "gloo: rank 0 runs on the CPU and rank 0 was not started by Open MPI, or has no MPI "
            "built in");
  EXPECT_EQ(reason({started_by_mpi, started_by_mpi}),
            "mpi: Open MPI started this job and rank 0 runs on the CPU");
  EXPECT_EQ(reason({gpu, other_gpu}), "nccl: every rank has a GPU of its own");
  EXPECT_THAT(reason({gpu, no_gpu}),
              HasSubstr("gloo: rank 1 has no GPU of its own and rank 0 was not"));
  EXPECT_THAT(reason({gpu, gpu}),
              HasSubstr("rank 0 has no GPU of its own (it shares GPU 0 with rank 1)"));
}

std::string refusal_of(const std::vector<Capability>& ranks) {
  try {
    return choose_backend(ranks).reason;
  } catch (const ConfigError& error) {
    return error.what();
  }
}

TEST(BackendChoice, RefusalsNameTheRank) {
  Capability asks_mpi = {.has_mpi = 1, .request = static_cast<int32_t>(BackendRequest::mpi)};
  Capability not_started = asks_mpi;
  not_started.has_mpi = 0;
  EXPECT_EQ(
      refusal_of({asks_mpi, not_started}),
      "backend mpi cannot be used: rank 1 was not started by Open MPI, or has no MPI built in");
  EXPECT_EQ(refusal_of({asks_mpi, {}}),
            "rank 1 asks for backend auto, rank 0 for mpi: give all ranks the same --backend");
  EXPECT_EQ(refusal_of({{}, {.wants_gpu = 1}}),
            "rank 1 runs on a GPU, rank 0 on the CPU: give all ranks the same device");
  EXPECT_EQ(
      refusal_of({{.request = static_cast<int32_t>(BackendRequest::nccl)}}),
      "backend nccl cannot be used: rank 0 runs on the CPU; NCCL connects GPUs: add --device cuda");
  EXPECT_THAT(refusal_of({{.request = 7}}), HasSubstr("rank 0 asks for backend number 7"));
  EXPECT_THAT(refusal_of({{}, {.has_gloo = 0}}), HasSubstr("rank 1 has no Gloo built in"));
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

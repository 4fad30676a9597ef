#include "fusedbun/dist/plan/agreement.h"

#include <cmath>
#include <limits>

#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<int64_t> combined(const std::vector<std::vector<int64_t>>& messages) {
  std::vector<int64_t> all = messages.at(0);
  for (const std::vector<int64_t>& message : messages) {
    for (size_t i = 0; i < all.size(); ++i) all[i] |= message.at(i);
  }
  return all;
}

EqualFacts random_facts(Random& random) {
  EqualFacts facts;
  facts.call = static_cast<OptimizerCall>(between(random, 1, 4));
  facts.job_step = between(random, 0, 1'000'000);
  facts.passes = between(random, 0, 5);
  facts.divisor = static_cast<double>(between(random, 1, 64)) / 3;
  facts.loss_scale = static_cast<double>(between(random, 1, 1 << 16));
  facts.max_grad_norm = static_cast<double>(between(random, 0, 3));
  facts.writes = random();
  facts.unfrozen = random();
  return facts;
}

/// Changes one fact; `which` from 0 to 7.
void change(EqualFacts& facts, int64_t which) {
  switch (which) {
    case 0:
      facts.call = facts.call == OptimizerCall::step ? OptimizerCall::finish : OptimizerCall::step;
      break;
    case 1:
      facts.job_step += 1;
      break;
    case 2:
      facts.passes += 1;
      break;
    case 3:
      facts.divisor *= 1.0000001;
      break;
    case 4:
      facts.loss_scale = -facts.loss_scale;
      break;
    case 5:
      facts.max_grad_norm += 1e-9;
      break;
    case 6:
      facts.writes ^= uint64_t{1} << 63;
      break;
    default:
      facts.unfrozen ^= 1;
  }
}

TEST(Agreement, IsWhatAnyRankSawAndWhetherAllAreEqual) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " round " + std::to_string(round));
    const int64_t ranks = between(random, 1, 9), parameters = between(random, 0, 150),
                  buckets = between(random, 0, 70);
    const EqualFacts equal = random_facts(random);
    const int64_t odd_one = chance(random, 0.5) ? between(random, 0, ranks - 1) : -1;
    std::vector<std::vector<int64_t>> messages;
    bool any_nonfinite = false, any_refuses = false;
    std::vector<bool> any_used(parameters), any_dirty(buckets);
    for (int64_t rank = 0; rank < ranks; ++rank) {
      RankFacts facts{.equal = equal,
                      .nonfinite = chance(random, 0.1),
                      .refuses = chance(random, 0.1),
                      .used = std::vector<bool>(parameters),
                      .dirty = std::vector<bool>(buckets)};
      if (rank == odd_one) change(facts.equal, between(random, 0, 7));
      for (int64_t p = 0; p < parameters; ++p) {
        facts.used[p] = chance(random, 0.3);
        any_used[p] = any_used[p] || facts.used[p];
      }
      for (int64_t b = 0; b < buckets; ++b) {
        facts.dirty[b] = chance(random, 0.05);
        any_dirty[b] = any_dirty[b] || facts.dirty[b];
      }
      any_nonfinite = any_nonfinite || facts.nonfinite;
      any_refuses = any_refuses || facts.refuses;
      messages.push_back(agreement_message(facts));
    }
    const Agreement agreement = read_agreement(combined(messages), parameters, buckets);
    EXPECT_EQ(agreement.nonfinite, any_nonfinite);
    EXPECT_EQ(agreement.refused, any_refuses);
    EXPECT_EQ(agreement.used, any_used);
    EXPECT_EQ(agreement.dirty, any_dirty);
    EXPECT_EQ(agreement.is_equal, odd_one < 0 || ranks == 1);
  }
}

TEST(Agreement, NamesTheRanksThatDifferAndWhatToDo) {
  std::vector<EqualFacts> ranks(3);
  for (EqualFacts& facts : ranks) facts.job_step = 9;
  EXPECT_EQ(disagreement(ranks), std::nullopt);
  ranks[1].call = OptimizerCall::finish;
  EXPECT_EQ(disagreement(ranks),
            "rank 1 called finish() after 9 steps where rank 0 called step() after 9 steps: all "
            "ranks must make the same calls of the optimizer equally often");
  ranks[1] = ranks[0];
  ranks[0].passes = 3;
  EXPECT_EQ(disagreement(ranks),
            "rank 0 accumulated the gradients of 3 backward passes where rank 1 accumulated the "
            "gradients of 1 backward pass: run the same number of passes on all ranks, or set "
            "ShardedOptions::gradient_divisor");
  ranks[0] = ranks[1];
  ranks[2].loss_scale = 1024;
  EXPECT_EQ(
      disagreement(ranks),
      "rank 2 scaled its loss by 1024 where rank 0 scaled its loss by 1: give step() the same "
      "loss_scale on all ranks");
  // The first fact that differs explains the later ones.
  ranks[2].job_step = 1;
  EXPECT_EQ(disagreement(ranks)->substr(0, 33), "rank 2 called step() after 1 step");
}

TEST(Agreement, ClipsAboveTheNormOnly) {
  EXPECT_EQ(clip_factor(5, 5), 1);
  EXPECT_EQ(clip_factor(5, 2.5), 0.5);
  EXPECT_EQ(clip_factor(5, 0), 1);  // off
  EXPECT_EQ(clip_factor(0, 1), 1);
  EXPECT_EQ(clip_factor(kInf, 1), 0);
  EXPECT_EQ(clip_factor(kNaN, 1), 1);
}

TEST(AgreementDeathTest, AMessageFitsTheModel) {
  EXPECT_DEATH(read_agreement(std::vector<int64_t>{0}, 0, 0), "an agreement message of 1 words");
}

}  // namespace
}  // namespace fusedbun::plan

#include "fusedbun/launcher/train/global_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

TEST(GlobalBatch, RanksAndMicroStepsShareItWithoutRest) {
  for (const int world_size : {1, 2, 3, 4, 6}) {
    for (const int accumulation : {1, 2}) {
      std::vector<int> taken(24, 0);
      for (int rank = 0; rank < world_size; ++rank) {
        const BatchShare share = share_of_batch(24, accumulation, rank, world_size);
        for (int micro_step = 0; micro_step < accumulation; ++micro_step) {
          for (int64_t i = 0; i < share.micro_sequences; ++i)
            ++taken.at(share.index(micro_step, i));
        }
      }
      EXPECT_EQ(taken, std::vector<int>(24, 1))
          << world_size << " ranks, " << accumulation << " micro-steps";
    }
  }
}

TEST(GlobalBatch, SaysWhatWouldFit) {
  EXPECT_THAT([] { share_of_batch(16, 1, 0, 3); },
              testing::ThrowsMessage<ConfigError>(
                  testing::AllOf(testing::HasSubstr("batch = 16: 3 ranks x 1"),
                                 testing::HasSubstr("15 or 18 would fit"))));
  EXPECT_THAT([] { share_of_batch(3, 4, 0, 2); },
              testing::ThrowsMessage<ConfigError>(testing::HasSubstr("divide it; 8 would fit")));
  EXPECT_THROW(share_of_batch(0, 1, 0, 1), ConfigError);
}

TEST(GlobalBatch, EachPassOfEachStepHasADropoutOfItsOwn) {
  std::set<uint64_t> seeds;
  std::set<uint32_t> lower_halves;  // what LibTorch's generator of CPUs takes
  for (const uint64_t run_seed : {1, 2}) {
    for (int64_t job_step = 0; job_step < 50; ++job_step) {
      for (int64_t first = 0; first < 40; first += 4) {
        seeds.insert(dropout_seed(run_seed, job_step, first));
        lower_halves.insert(
            static_cast<uint32_t>(*seeds.find(dropout_seed(run_seed, job_step, first))));
      }
    }
  }
  EXPECT_EQ(seeds.size(), 1000u);
  EXPECT_EQ(lower_halves.size(), 1000u);
}

}  // namespace
}  // namespace fusedbun::train

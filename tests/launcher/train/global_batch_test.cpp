#include "fusedbun/launcher/train/global_batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace fusedbun::train

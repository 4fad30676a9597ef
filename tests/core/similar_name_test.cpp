#include "fusedbun/core/similar_name.h"

#include <gtest/gtest.h>

namespace fusedbun {
namespace {

TEST(SimilarName, NamesWhatWasMeantAndNothingElse) {
  EXPECT_EQ(similar_name("trian", {"launch", "train"}), "train");
  EXPECT_EQ(similar_name("--log-dri", {"--log-dir", "--tee"}), "--log-dir");
  EXPECT_EQ(similar_name("--unlike-all", {"--log-dir", "--tee"}), "");
  EXPECT_EQ(similar_name("lr", {}), "");
}

TEST(SimilarName, EditsAreLettersAddedRemovedOrReplaced) {
  EXPECT_EQ(edits_between("", ""), 0u);
  EXPECT_EQ(edits_between("abc", ""), 3u);
  EXPECT_EQ(edits_between("kitten", "sitting"), 3u);
}

}  // namespace
}  // namespace fusedbun

#include "fusedbun/dist/run_folder/run_folder_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::run_folder {
namespace {

TEST(RunFolderLock, ASecondJobIsToldWhoHasIt) {
  const support::ScratchFolder folder;
  const auto run_dir = folder / "new";
  const RunFolderLock first(run_dir);
  try {
    const RunFolderLock second(run_dir);
    FAIL() << "two jobs in one folder";
  } catch (const UnavailableError& error) {
    EXPECT_THAT(error.what(),
                testing::HasSubstr("pid " + std::to_string(::getpid()) + " on host "));
  }
}

TEST(RunFolderLock, ItIsFreeAfterwards) {
  const support::ScratchFolder folder;
  std::optional<RunFolderLock> lock(std::in_place, folder / "");
  lock.reset();
  EXPECT_NO_THROW(RunFolderLock(folder / ""));
}

TEST(RunFolderLock, OtherFoldersAreOthers) {
  const support::ScratchFolder folder;
  const RunFolderLock a(folder / "a");
  EXPECT_NO_THROW(RunFolderLock(folder / "b"));
}

}  // namespace
}  // namespace fusedbun::run_folder

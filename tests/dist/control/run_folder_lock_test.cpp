#include "fusedbun/dist/control/run_folder_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

TEST(RunFolderLock, ASecondJobIsToldWhoHasIt) {
  const TemporaryFolder folder;
  const auto run_dir = folder.path() / "new";
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
  const TemporaryFolder folder;
  std::optional<RunFolderLock> lock(std::in_place, folder.path());
  lock.reset();
  EXPECT_NO_THROW(RunFolderLock(folder.path()));
}

TEST(RunFolderLock, OtherFoldersAreOthers) {
  const TemporaryFolder folder;
  const RunFolderLock a(folder.path() / "a");
  EXPECT_NO_THROW(RunFolderLock(folder.path() / "b"));
}

}  // namespace
}  // namespace fusedbun::control

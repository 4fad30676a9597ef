#include "fusedbun/dist/run_folder/run_folder_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
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

TEST(RunFolderLock, WhoElseMayWriteTheFolderIsSaid) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a folder away";
  const support::ScratchFolder folder;
  std::filesystem::create_directory(folder / "run");
  EXPECT_THAT(RunFolderLock(folder / "run").warnings(), testing::IsEmpty());
  ASSERT_EQ(::chmod((folder / "run").c_str(), 0770), 0);
  EXPECT_THAT(RunFolderLock(folder / "run").warnings(), testing::IsEmpty()) << "root's own group";
  constexpr gid_t kGames = 60;  // as in every Debian
  ASSERT_EQ(::chown((folder / "run").c_str(), 0, kGames), 0);
  EXPECT_THAT(RunFolderLock(folder / "run").warnings(),
              testing::ElementsAre(testing::StartsWith("the members of group games may change ")));
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(::chown((folder / "run").c_str(), kNobody, 0), 0);
  EXPECT_THAT(RunFolderLock(folder / "run").warnings(),
              testing::ElementsAre(testing::StartsWith("user nobody may change ")));
}

}  // namespace
}  // namespace fusedbun::run_folder

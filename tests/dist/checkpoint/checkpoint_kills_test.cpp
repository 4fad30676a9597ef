// Writers that are killed: in a process of their own, by themselves, at one of the calls that reach the disk.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/tests/dist/checkpoint/example_checkpoint.h"
#include "fusedbun/tests/support/faulty_calls.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
namespace {

using support::FaultyCalls;
using support::ScratchFolder;

/// Runs `work` in a child that is killed at the `nth` call; 0: never. Was it killed?
template <class Work>
bool is_killed(int64_t nth, Work work) {
  const pid_t child = ::fork();
  if (child == 0) {
    FaultyCalls::instance().skip_fsync();
    FaultyCalls::instance().kill_at(nth);
    try {
      work();
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  if (WIFSIGNALED(status)) {
    EXPECT_EQ(WTERMSIG(status), SIGKILL);
    return true;
  }
  EXPECT_EQ(WEXITSTATUS(status), 0);
  return false;
}

int folders_in(const std::filesystem::path& root) {
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root))
    folders += entry.is_directory();
  return folders;
}

TEST(Kills, AThousandSavesKeepThreeAndNeverHaveFewerThanTwo) {
  std::mt19937_64 random(test_seed(20261127));
  const ScratchFolder scratch(support::folder_in_memory());
  const CheckpointFolder folder(scratch / "checkpoints");
  const std::vector<PlainTensor> tensors = {
      tensor_by_rows(kModelFolder, "w", Dtype::F32, {4, 2}, 2)};
  constexpr int kSaves = 1000, kKills = 20;
  constexpr int64_t kCallsPerSave = 40;  // about; only spreads the kills
  int kills = 0, attempts = 0, most_before_start = 0;
  int64_t next = 1;
  while (next <= kSaves) {
    ASSERT_LT(++attempts, 2 * kKills + 10);
    const int64_t nth =
        kills < kKills ? 1 + static_cast<int64_t>(random() % (2 * kCallsPerSave * kSaves / kKills))
                       : 0;
    kills += is_killed(nth, [&] {
      for (int64_t step = next; step <= kSaves; ++step) {
        save(folder, step, 2, tensors);
        folder.remove_oldest(3);
      }
    });
    most_before_start = std::max(most_before_start, folders_in(folder.root()));
    folder.remove_leftovers();
    EXPECT_LE(folders_in(folder.root()), 4);
    const std::vector<int64_t> steps = folder.steps();
    for (const int64_t step : steps) CheckpointReader(folder.path_of(step)).verify();
    const int64_t published = steps.empty() ? 0 : steps.front();
    EXPECT_GE(std::ssize(steps), std::min<int64_t>(2, published));
    EXPECT_GE(published, next - 1) << "what was published is lost";
    next = published + 1;
  }
  EXPECT_EQ(kills, kKills);
  EXPECT_GT(most_before_start, 3) << "no kill hit a save";
  EXPECT_EQ(folder.steps(), (std::vector<int64_t>{1000, 999, 998}));
}

TEST(Kills, AtEveryCallOfASaveThatReplacesOneIsThere) {
  for (const bool has_exchange : {true, false}) {
    const ScratchFolder scratch(support::folder_in_memory());
    const CheckpointFolder folder(scratch / "checkpoints");
    const std::vector<PlainTensor> old = {
        tensor_by_rows(kModelFolder, "old", Dtype::F32, {4, 2}, 1)};
    const std::vector<PlainTensor> fresh = {
        tensor_by_rows(kModelFolder, "new", Dtype::F32, {4, 2}, 1)};
    save(folder, 1, 1, old);
    bool was_without_name = false;
    int64_t nth = 1;
    while (is_killed(nth, [&] {
      if (!has_exchange) FaultyCalls::instance().forbid_exchange();
      save(folder, 1, 1, fresh);
    })) {
      was_without_name |= folder.steps().empty();
      folder.remove_leftovers();
      EXPECT_EQ(folders_in(folder.root()), 1) << "killed at call " << nth;
      const CheckpointReader reader(folder.path_of(1));
      reader.verify();
      ++nth;
    }
    EXPECT_GT(nth, 20);
    EXPECT_EQ(was_without_name, !has_exchange);
    EXPECT_NE(CheckpointReader(folder.path_of(1)).find(kModelFolder, "new"), nullptr);
  }
}

}  // namespace
}  // namespace fusedbun::checkpoint

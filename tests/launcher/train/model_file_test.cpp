#include "fusedbun/launcher/train/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using checkpoint::place_of;
using support::read_text;
using support::write_text;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

class ModelFileTest : public testing::Test {
 protected:
  ModelFile::Patience patience(std::function<bool()> gives_up = [] { return false; }) {
    return {[this](const std::string& sentence) { said_.push_back(sentence); }, std::move(gives_up),
            1ms};
  }
  support::ScratchFolder folder_;
  fs::path path_ = folder_ / "model.safetensors";
  ModelPlace place_{.weights = path_, .is_folder = false};
  fs::path elsewhere_ = folder_ / "save_to";
  std::vector<std::string> said_;
};

TEST_F(ModelFileTest, WhatCannotBeSavedIsKnownAtTheStart) {
  EXPECT_THROW(ModelFile(place_of(folder_ / "absent/model.safetensors"), 1, elsewhere_), IoError);
  EXPECT_THAT([&] { ModelFile(place_, int64_t{1} << 60, elsewhere_); },
              ThrowsMessage<IoError>(HasSubstr("make room")));
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(ModelFileTest, AFolderIsMadeWhenTrainingStartsAndNotBefore) {
  const ModelPlace place = place_of(folder_ / "new/model");
  require_writable(place);
  EXPECT_FALSE(fs::exists(folder_ / "new"));
  ModelFile file(place, 1, elsewhere_);
  EXPECT_EQ(file.save([](const fs::path& path) { write_text(path, "model"); }, patience()), place);
  EXPECT_EQ(read_text(folder_ / "new/model/model.safetensors"), "model");
}

// A disk that is gone is not replaced by a folder of its name on another one.
TEST_F(ModelFileTest, AFolderThatHasGoneIsNotMadeAnew) {
  ModelFile file(place_of(folder_ / "model"), 1, elsewhere_);
  fs::remove_all(folder_ / "model");
  const auto saved = file.save(
      [](const fs::path& path) {
        run_folder::AtomicFile model(path);
        model.commit();
      },
      patience([&] { return !said_.empty(); }));
  EXPECT_FALSE(saved);
  EXPECT_FALSE(fs::exists(folder_ / "model"));
}

TEST_F(ModelFileTest, SavingIsTriedUntilItWorksAndToldOnce) {
  int tries = 0;
  ModelFile file(place_, 1, elsewhere_);
  const std::optional<ModelPlace> saved = file.save(
      [&](const fs::path& path) {
        if (++tries < 4) throw IoError("no space");
        write_text(path, "model");
      },
      patience());
  EXPECT_EQ(saved, place_);
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(read_text(path_), "model");
  EXPECT_THAT(said_, ElementsAre(HasSubstr("no space; the model is kept in memory")));
}

TEST_F(ModelFileTest, ItIsGivenUpOnlyWhenSomebodySaysSo) {
  int tries = 0;
  ModelFile file(place_, 1, elsewhere_);
  const auto saved = file.save(
      [&](const fs::path&) {
        ++tries;
        throw IoError("no space");
      },
      patience([&] { return tries == 3; }));
  EXPECT_FALSE(saved);
  EXPECT_EQ(tries, 3);
  EXPECT_THAT(said_.back(), HasSubstr("no space; left without saving the model, as told"));
}

TEST_F(ModelFileTest, AnotherPlaceCanBeGivenWhileItIsTried) {
  fs::create_symlink(folder_ / "of an earlier run", elsewhere_);
  ModelFile file(place_, 1, elsewhere_);
  write_text(folder_ / "taken.safetensors", "another file");
  fs::create_directory(folder_ / "other");
  int tries = 0;
  const auto saved = file.save(
      [&](const fs::path& path) {
        ++tries;
        if (path == path_) throw IoError("no space");
        write_text(path, "model");
      },
      patience([&] {
        // First a name that is taken, then one that is not.
        if (said_.size() < 3) {
          fs::remove(elsewhere_);
          fs::create_symlink(
              folder_ / "other" / (said_.size() == 1 ? "../taken.safetensors" : "model"),
              elsewhere_);
        }
        return false;
      }));
  EXPECT_EQ(saved, (ModelPlace{folder_ / "other/model/model.safetensors", true}));
  EXPECT_EQ(tries, 2) << "a file that is there is not written";
  EXPECT_EQ(read_text(folder_ / "taken.safetensors"), "another file");
  EXPECT_THAT(said_,
              ElementsAre(HasSubstr("no space"), HasSubstr("taken.safetensors is there already")));
}

TEST_F(ModelFileTest, ItIsSavedWhenOthersHaveTakenAllDescriptors) {
  ModelFile file(place_, 1, elsewhere_);
  std::vector<int> taken;
  for (int one = ::dup(0); one >= 0; one = ::dup(0)) taken.push_back(one);
  ASSERT_EQ(errno, EMFILE);
  int tries = 0;
  const auto saved = file.save(
      [&](const fs::path& path) {
        ++tries;
        run_folder::AtomicFile model(path);
        model.write("model");
        model.commit();
      },
      patience([&] { return tries > 3; }));
  for (const int one : taken) ::close(one);
  EXPECT_EQ(saved, place_);
  EXPECT_EQ(tries, 1);
  EXPECT_EQ(read_text(path_), "model");
}

TEST_F(ModelFileTest, OtherErrorsAreNotTriedAgain) {
  ModelFile file(place_, 1, elsewhere_);
  EXPECT_THROW(file.save([](const fs::path&) { throw DataError("our bug"); }, patience()),
               DataError);
}

TEST_F(ModelFileTest, AModelThatWasThereAtTheStartIsReplaced) {
  write_text(path_, "old");
  ModelFile file(place_, 1, elsewhere_);
  EXPECT_EQ(file.save([](const fs::path& path) { write_text(path, "new"); }, patience()), place_);
  EXPECT_EQ(read_text(path_), "new");
}

TEST_F(ModelFileTest, AModelThatAnotherJobSavedMeanwhileIsKept) {
  const fs::path beside = folder_ / ("model-" + std::to_string(::getpid()) + ".safetensors");
  for (const bool was_there : {false, true}) {
    if (was_there) write_text(path_, "old");
    ModelFile file(place_, 1, elsewhere_);
    write_text(folder_ / "other", "another job's");
    fs::rename(folder_ / "other", path_);
    EXPECT_EQ(file.save([](const fs::path& path) { write_text(path, "mine"); }, patience()),
              (ModelPlace{beside, false}));
    EXPECT_EQ(read_text(path_), "another job's");
    EXPECT_EQ(read_text(beside), "mine");
  }
}

}  // namespace
}  // namespace fusedbun::train

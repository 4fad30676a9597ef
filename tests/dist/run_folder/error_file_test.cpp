#include "fusedbun/dist/run_folder/error_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::run_folder {
namespace {

nlohmann::json read(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

const plan::LostRank kLost{.rank = 2,
                           .host = "node3",
                           .pid = 4711,
                           .last = {41, plan::Phase::update, 1},
                           .cause = plan::LostRank::Cause::gone};

TEST(ErrorFile, TellsWhoWasLostAndWhere) {
  const support::ScratchFolder folder;
  write_error_file(folder / "", kLost);
  const auto json = read(folder / "error.json");
  EXPECT_EQ(json.at("rank"), 2);
  EXPECT_EQ(json.at("host"), "node3");
  EXPECT_EQ(json.at("pid"), 4711);
  EXPECT_EQ(json.at("phase"), "update");
  EXPECT_EQ(json.at("bucket"), 1);
  EXPECT_EQ(json.at("step"), 41);
  EXPECT_EQ(json.at("cause"), "gone");
  EXPECT_TRUE(json.at("exit_code").is_null());
  EXPECT_EQ(json.at("sentence"), plan::sentence_of(kLost));
}

TEST(ErrorFile, TheFirstOfManyWritersWinsAndNothingElseIsLeft) {
  const support::ScratchFolder folder;
  std::vector<std::thread> writers;
  for (int rank = 0; rank < 8; ++rank) {
    writers.emplace_back([&, rank] {
      plan::LostRank lost = kLost;
      lost.rank = rank;
      write_error_file(folder / "", lost);
    });
  }
  for (std::thread& writer : writers) writer.join();
  const auto first = read(folder / "error.json");
  write_error_file(folder / "", kLost);
  EXPECT_EQ(read(folder / "error.json"), first);
  std::filesystem::directory_iterator files(folder / "");
  EXPECT_EQ(std::distance(begin(files), end(files)), 1);
}

TEST(ErrorFile, OfEarlierAttemptsIsKept) {
  const support::ScratchFolder folder;
  for (int attempt = 0; attempt < 3; ++attempt) {
    keep_earlier_error_file(folder / "");
    EXPECT_FALSE(std::filesystem::exists(folder / "error.json"));
    plan::LostRank lost = kLost;
    lost.rank = attempt;
    write_error_file(folder / "", lost);
  }
  EXPECT_EQ(read(folder / "error-1.json").at("rank"), 0);
  EXPECT_EQ(read(folder / "error-2.json").at("rank"), 1);
  EXPECT_EQ(read(folder / "error.json").at("rank"), 2);
  remove_error_files(folder / "");
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(ErrorFile, OfAJobThatHungNamesNoRankButItsSentenceAll) {
  const support::ScratchFolder folder;
  write_error_file(folder / "", {.rank = plan::LostRank::kNone,
                                 .cause = plan::LostRank::Cause::hung,
                                 .silence_us = 1'800'000'000,
                                 .reason = "rank 0 in save, job step 9"});
  const auto json = read(folder / "error.json");
  EXPECT_EQ(json.at("cause"), "hung");
  for (const char* name : {"rank", "host", "pid", "phase", "bucket", "step", "exit_code"}) {
    EXPECT_TRUE(json.at(name).is_null()) << name;
  }
  EXPECT_EQ(json.at("sentence"),
            "all ranks live, but none has ended a step or changed its phase for 1800.0 s "
            "(--hang-timeout): rank 0 in save, job step 9");
}

// A run folder's absence is no second error, and no file appears anywhere else.
TEST(ErrorFile, WithoutAFolderNothingIsWritten) {
  const support::ScratchFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder / "");
  write_error_file("", kLost);
  write_error_file(folder / "missing", kLost);
  keep_earlier_error_file(folder / "missing");
  remove_error_files(folder / "missing");
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
  std::ofstream(folder / "file") << "no folder";
  write_error_file(folder / "file", kLost);
  EXPECT_EQ(std::filesystem::file_size(folder / "file"), 9U);
  std::filesystem::current_path(before);
}

}  // namespace
}  // namespace fusedbun::run_folder

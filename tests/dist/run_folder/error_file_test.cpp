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
  remove_error_file(folder / "");
  EXPECT_FALSE(std::filesystem::exists(folder / "error.json"));
}

TEST(ErrorFile, WithoutAFolderNothingHappens) {
  write_error_file("", kLost);
  write_error_file("/no/such/folder", kLost);
  remove_error_file("/no/such/folder");
}

}  // namespace
}  // namespace fusedbun::run_folder

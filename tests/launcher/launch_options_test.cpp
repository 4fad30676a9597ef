#include "fusedbun/launcher/launch/launch_options.h"

#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::launch {
namespace {

TEST(ParseStreams, ReadsOneValueForAllOrOnePerRank) {
  EXPECT_EQ(parse_streams("--tee", "3", 2), (std::vector<uint8_t>{3, 3}));
  EXPECT_EQ(parse_streams("--tee", "0:1,2:2", 3), (std::vector<uint8_t>{1, 0, 2}));
}

TEST(ParseStreams, RefusesWhatTorchrunRefuses) {
  for (const char* text : {"", "4", "a", "0:4", "0:1,", "1:", "0;1", "99999:1"}) {
    EXPECT_THROW(parse_streams("--tee", text, 2), UsageError) << text;
  }
  EXPECT_THROW(parse_streams("--tee", "2:1", 2), ConfigError);
}

TEST(RankEnvironment, IsWhatTorchrunSets) {
  const AttemptIdentity identity = {.ranks = 3,
                                    .master_port = 4242,
                                    .run_id = "run",
                                    .attempt = 2,
                                    .max_restarts = 5,
                                    .cores = 7};
  const auto environment = rank_environment(identity, 1);
  EXPECT_EQ(environment.at("RANK"), "1");
  EXPECT_EQ(environment.at("WORLD_SIZE"), "3");
  EXPECT_EQ(environment.at("MASTER_PORT"), "4242");
  EXPECT_EQ(environment.at("TORCHELASTIC_RESTART_COUNT"), "2");
  EXPECT_EQ(environment.at("OMP_NUM_THREADS"), "2");
  EXPECT_FALSE(environment.contains("TORCHELASTIC_ERROR_FILE"));
}

TEST(RankEnvironment, OfTheSecondOfTwoHosts) {
  const auto environment = rank_environment({.ranks = 3,
                                             .nodes = 2,
                                             .node_rank = 1,
                                             .master_addr = "a",
                                             .master_port = 29500,
                                             .cores = 6},
                                            2);
  EXPECT_EQ(environment.at("RANK"), "5");
  EXPECT_EQ(environment.at("LOCAL_RANK"), "2");
  EXPECT_EQ(environment.at("WORLD_SIZE"), "6");
  EXPECT_EQ(environment.at("LOCAL_WORLD_SIZE"), "3");
  EXPECT_EQ(environment.at("GROUP_RANK"), "1");
  EXPECT_EQ(environment.at("GROUP_WORLD_SIZE"), "2");
  EXPECT_EQ(environment.at("MASTER_ADDR"), "a");
  EXPECT_EQ(environment.at("OMP_NUM_THREADS"), "2");
}

TEST(ParseRanks, ReadsTorchrunsWords) {
  EXPECT_EQ(parse_ranks("4", 0, 2), 4);
  EXPECT_EQ(parse_ranks("gpu", 3, 2), 3);
  EXPECT_EQ(parse_ranks("cpu", 3, 2), 2);
  EXPECT_EQ(parse_ranks("auto", 3, 2), 3);
  EXPECT_EQ(parse_ranks("auto", 0, 2), 2);
  EXPECT_THROW(parse_ranks("gpu", 0, 2), ConfigError);
  for (const char* text : {"0", "-3", "1025"})
    EXPECT_THROW(parse_ranks(text, 1, 1), ConfigError) << text;
  for (const char* text : {"", "-", "two", "1x", "99999"})
    EXPECT_THROW(parse_ranks(text, 1, 1), UsageError) << text;
}

TEST(ParseNodes, TakesAFixedNumberOnly) {
  EXPECT_EQ(parse_nodes("2"), 2);
  EXPECT_EQ(parse_nodes("2:2"), 2);
  for (const char* text : {"1:4", "0", "-2"}) EXPECT_THROW(parse_nodes(text), ConfigError) << text;
  for (const char* text : {"", "x", "1:", ":1", "2:x"})
    EXPECT_THROW(parse_nodes(text), UsageError) << text;
}

TEST(RankEnvironment, GivesEachRankAtLeastOneThread) {
  EXPECT_EQ(rank_environment({.ranks = 8, .cores = 2}, 0).at("OMP_NUM_THREADS"), "1");
}

TEST(Route, RankZeroKeepsTheTerminalAndLogsWin) {
  LaunchOptions options = {.ranks = 2};
  EXPECT_FALSE(route(options, 0, kErr, true).captured);
  EXPECT_TRUE(route(options, 0, kErr, false).captured);
  EXPECT_TRUE(route(options, 1, kErr, true).captured);
  options.tee = {kErr, kNoStream};
  EXPECT_TRUE(route(options, 0, kErr, true).captured);
  EXPECT_TRUE(route(options, 0, kErr, true).to_log);
  EXPECT_FALSE(route(options, 0, kOut, true).to_log);
  options.redirects = {kErr, kNoStream};
  EXPECT_FALSE(route(options, 0, kErr, true).to_console);
  EXPECT_FALSE(route({.ranks = 1}, 0, kOut, false).captured);
}

}  // namespace
}  // namespace fusedbun::launch

#include "fusedbun/launcher/cli/log_record.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

namespace fusedbun::launcher {
namespace {

TEST(LogRecord, IsALineOfJsonThatSaysWhenWhoAndWhat) {
  EXPECT_FALSE(speaks_json());
  EXPECT_EQ(error_line("it broke"), "fusedbun: it broke\n");
  speak_json(3);
  EXPECT_TRUE(speaks_json());
  const std::string line = log_record(
      "info", "two\nlines \xC3", {{"step", int64_t{7}}, {"loss", std::nan("")}, {"model", "a"}});
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_TRUE(is_log_record(line.substr(0, line.size() - 1)));
  const auto record = nlohmann::json::parse(line);
  EXPECT_EQ(record.at("level"), "info");
  EXPECT_EQ(record.at("rank"), 3);
  EXPECT_EQ(record.at("message"), "two\nlines \xEF\xBF\xBD");
  EXPECT_EQ(record.at("step"), 7);
  EXPECT_TRUE(record.at("loss").is_null());
  EXPECT_EQ(record.at("model"), "a");

  const std::string time = record.at("time");
  ASSERT_EQ(time.size(), std::string("2026-11-28T09:00:00.123Z").size());
  std::tm parts{};
  ASSERT_EQ(*::strptime(time.c_str(), "%Y-%m-%dT%H:%M:%S", &parts), '.');
  EXPECT_NEAR(static_cast<double>(::timegm(&parts)), static_cast<double>(std::time(nullptr)), 5);

  const auto error = nlohmann::json::parse(error_line("it broke", {{"exit_code", int64_t{78}}}));
  EXPECT_EQ(error.at("level"), "error");
  EXPECT_EQ(error.at("message"), "it broke");
  EXPECT_EQ(error.at("exit_code"), 78);
}

TEST(LogRecord, OtherLinesAreNone) {
  for (const char* const line : {"", "step 1/2", "{", "{\"a\":1}", "{\"time\":\"half a line"})
    EXPECT_FALSE(is_log_record(line)) << line;
}

}  // namespace
}  // namespace fusedbun::launcher

#include "fusedbun/launcher/cli/log_record.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

namespace fusedbun::launcher {
namespace {

constexpr int kSpeaksText = -1;
std::atomic<int> rank_of_json_speaker = kSpeaksText;

std::string utc_with_milliseconds() {
  using std::chrono::milliseconds;
  const auto since =
      std::chrono::duration_cast<milliseconds>(std::chrono::system_clock::now().time_since_epoch());
  const std::time_t seconds = since.count() / 1000;
  std::tm parts{};
  char date[32], text[48];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", ::gmtime_r(&seconds, &parts));
  std::snprintf(text, sizeof text, "%s.%03dZ", date, static_cast<int>(since.count() % 1000));
  return text;
}

}  // namespace

void speak_json(int rank) {
  rank_of_json_speaker = rank;
}

bool speaks_json() {
  return rank_of_json_speaker != kSpeaksText;
}

std::string log_record(std::string_view level, std::string_view message,
                       const std::vector<LogField>& fields) {
  using Json = nlohmann::ordered_json;
  Json record{{"time", utc_with_milliseconds()},
              {"level", level},
              {"rank", std::max(0, rank_of_json_speaker.load())},
              {"message", message}};
  for (const auto& [name, value] : fields)
    std::visit([&](const auto& known) { record[std::string(name)] = known; }, value);
  return record.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

bool is_log_record(std::string_view line) {
  return line.starts_with("{\"time\":\"") && line.ends_with("}");
}

std::string error_line(std::string_view sentence, const std::vector<LogField>& fields) {
  return speaks_json() ? log_record("error", sentence, fields)
                       : "fusedbun: " + std::string(sentence) + "\n";
}

}  // namespace fusedbun::launcher

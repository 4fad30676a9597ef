#include "fusedbun/launcher/bench/report.h"

#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <ostream>

#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/env/versions.h"

namespace fusedbun::bench {
namespace {

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", ::localtime_r(&now, &parts));
  return text;
}

std::string torch_version() {
  for (const auto& [name, version] : launcher::versions()) {
    if (name == "torch") return version;
  }
  return "unknown";
}

/// Three significant digits; a step is not known better.
std::string shown(const Json& value) {
  if (!value.is_number_float()) return value.is_string() ? value.get<std::string>() : value.dump();
  const double number = value.get<double>();
  const int digits =
      number == 0 ? 0 : std::max(0, 2 - static_cast<int>(std::floor(std::log10(std::abs(number)))));
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, number);
  return text;
}

bool is_quartile(const std::string& key) {
  return key.ends_with("_low") || key.ends_with("_high");
}

std::string cell(const Json& row, const std::string& key) {
  if (!row.contains(key) || row[key].is_null()) return "";
  std::string text = shown(row[key]);
  if (row.contains(key + "_low")) {
    text += " (" + shown(row[key + "_low"]) + " to " + shown(row[key + "_high"]) + ")";
  }
  return text;
}

}  // namespace

Json empty_report(const std::string& benchmark) {
  return {{"date", today()},
          {"machine", {{"cores", launcher::usable_cores()}, {"processor", processor()}}},
          {"torch", torch_version()},
          {"benchmark", benchmark},
          {"rows", Json::array()}};
}

void put(Json& row, const std::string& name, const Spread& spread) {
  row[name] = spread.median;
  row[name + "_low"] = spread.low;
  row[name + "_high"] = spread.high;
}

void print_table(const Json& report, std::ostream& out) {
  const Json& rows = report["rows"];
  if (rows.empty()) return;
  std::vector<std::string> keys;
  for (const auto& [key, value] : rows[0].items()) {
    if (!is_quartile(key)) keys.push_back(key);
  }
  out << report["date"].get<std::string>() << ", " << report["machine"]["cores"] << " cores, "
      << report["machine"]["processor"].get<std::string>() << ", torch "
      << report["torch"].get<std::string>() << "; medians (quartiles)\n\n|";
  for (const std::string& key : keys) out << ' ' << key << " |";
  out << "\n|";
  for (size_t i = 0; i < keys.size(); ++i) out << " --- |";
  out << '\n';
  for (const Json& row : rows) {
    out << '|';
    for (const std::string& key : keys) out << ' ' << cell(row, key) << " |";
    out << '\n';
  }
}

}  // namespace fusedbun::bench

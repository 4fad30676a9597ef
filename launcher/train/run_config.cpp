#include "fusedbun/launcher/train/run_config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using launcher::Setting;

constexpr std::string_view kTypedOnly[] = {"config",     "print-config", "rank",
                                           "world-size", "resume",       "overwrite"};
/// Where an earlier run left what it wrote: another run must not write there.
constexpr std::string_view kPlacesOfARun[] = {
    "run-dir", "save", "trace", "metrics-port", "metrics-address", "health-port"};
constexpr const char* kModelKey = "model";

bool is_in(const auto& names, std::string_view name) {
  return std::ranges::find(names, name) != std::end(names);
}

/// The value as a flag would have it; nothing of a table or a date.
std::optional<std::string> text_of(const toml::node& node) {
  if (const auto text = node.value_exact<std::string>()) return *text;
  if (const auto flag = node.value_exact<bool>()) return *flag ? "true" : "false";
  if (const auto whole = node.value_exact<int64_t>()) return std::to_string(*whole);
  const auto number = node.value_exact<double>();
  if (!number) return std::nullopt;
  char digits[64];
  const auto written = std::to_chars(std::begin(digits), std::end(digits), *number);
  return std::string(digits, written.ptr);
}

std::vector<std::string> texts_of(const toml::node& node, const std::string& place,
                                  const std::string& key) {
  std::vector<std::string> texts;
  const auto add = [&](const toml::node& value) {
    const auto text = text_of(value);
    FUSEDBUN_REQUIRE(text, ConfigError,
                     place + ": " + key +
                         " must be a text, a number, true, false, or a list of such: a key per "
                         "flag of train, and no table but [model]");
    texts.push_back(*text);
  };
  if (const toml::array* const list = node.as_array()) {
    for (const toml::node& value : *list) add(value);
  } else {
    add(node);
  }
  return texts;
}

std::vector<Setting> of_toml(const fs::path& path) {
  const std::string name = path.string();
  toml::table table;
  try {
    table = toml::parse(run_folder::read_text_file(path), name);
  } catch (const toml::parse_error& error) {
    throw UsageError(name + ":" + std::to_string(error.source().begin.line) + ": " +
                     std::string(error.description()));
  }
  const Setting model{"model-config", {name}, name};
  if (table.contains("model_type")) return {model};
  std::vector<Setting> settings;
  for (const auto& [key, value] : table) {
    const std::string flag(key.str());
    const std::string place = name + ":" + std::to_string(value.source().begin.line);
    if (flag == kModelKey && value.is_table()) {
      settings.push_back(model);
      continue;
    }
    std::string dashed = flag;
    std::ranges::replace(dashed, '_', '-');
    settings.push_back({dashed, texts_of(value, place, flag), place});
  }
  return settings;
}

/// `path`: a run.json, under whatever name. Its newest attempt counts.
std::vector<Setting> of_run(const fs::path& path) {
  const auto attempts = run_folder::read_run_record_file(path);
  FUSEDBUN_REQUIRE(!attempts.empty() && attempts.back().config, DataError,
                   path.string() +
                       " was written by an earlier version, which did not keep what was set: give "
                       "the flags of its \"command\"");
  std::vector<Setting> settings;
  for (const auto& [flag, values] : *attempts.back().config)
    if (!is_typed_only(flag) && !is_in(kPlacesOfARun, flag))
      settings.push_back({flag, values, path.string()});
  return settings;
}

bool is_run_record(const fs::path& path) {
  const auto json = nlohmann::json::parse(run_folder::read_text_file(path), nullptr, false);
  return json.is_object() && json.contains("attempts");
}

}  // namespace

bool is_typed_only(std::string_view flag) {
  return is_in(kTypedOnly, flag);
}

std::vector<Setting> read_run_config(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    if (path.extension() != ".json") return of_toml(path);
    if (is_run_record(path)) return of_run(path);
  }
  return {{"model-config", {path.string()}, path.string()}};
}

}  // namespace fusedbun::train

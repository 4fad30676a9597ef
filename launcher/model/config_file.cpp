#include "fusedbun/launcher/model/config_file.h"

#include <toml++/toml.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"

namespace fusedbun::model {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

[[noreturn]] void refuse_node(const std::string& name, const toml::node& node,
                              const std::string& what) {
  throw ConfigError(name + ":" + std::to_string(node.source().begin.line) + ": " + what);
}

Json json_of(const toml::node& node, const std::string& name) {
  if (const auto* table = node.as_table()) {
    Json object = Json::object();
    for (const auto& [key, value] : *table) object[std::string(key.str())] = json_of(value, name);
    return object;
  }
  if (const auto* array = node.as_array()) {
    Json list = Json::array();
    for (const toml::node& value : *array) list.push_back(json_of(value, name));
    return list;
  }
  if (const auto text = node.value_exact<std::string>()) return *text;
  if (const auto flag = node.value_exact<bool>()) return *flag;
  if (const auto whole = node.value_exact<int64_t>()) return *whole;
  const auto number = node.value_exact<double>();
  if (!number) refuse_node(name, node, "a date or a time means nothing to a model");
  // JSON has neither infinity nor NaN.
  if (!std::isfinite(*number)) refuse_node(name, node, "a number must be finite");
  return *number;
}

Json read_toml(const fs::path& path) {
  const std::string name = path.string();
  try {
    const toml::table table = toml::parse(run_folder::read_text_file(path), name);
    const toml::table* const model = table["model"].as_table();
    return json_of(model != nullptr ? *model : table, name);
  } catch (const toml::parse_error& error) {
    throw UsageError(name + ":" + std::to_string(error.source().begin.line) + ": " +
                     std::string(error.description()));
  }
}

ConfigFile from_toml(const fs::path& path) {
  const Json said = read_toml(path);
  ConfigFile file{.path = path, .config = parse_own_config(said.dump(), path.string()), .text = {}};
  auto json = nlohmann::ordered_json::parse(hf_config_text(file.config, "float32"));
  for (const char* token : kTokenNames) {
    if (said.contains(token)) json[token] = said.at(token);
  }
  file.text = json.dump(2) + "\n";
  return file;
}

}  // namespace

ConfigFile read_config_file(const fs::path& given) {
  std::error_code error;
  const fs::path path = fs::is_directory(given, error) ? given / kConfigName : given;
  ConfigFile file;
  if (path.extension() == ".toml") {
    file = from_toml(path);
  } else {
    file.path = path;
    file.text = run_folder::read_text_file(path);
    file.config = parse_hf_config(file.text, path.string());
  }
  try {
    std::visit([](const auto& sizes) { validate(sizes); }, file.config);
  } catch (const ConfigError& impossible) {
    throw ConfigError(path.string() + ": " + impossible.what());
  }
  return file;
}

}  // namespace fusedbun::model

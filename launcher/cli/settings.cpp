#include "fusedbun/launcher/cli/settings.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <optional>
#include <regex>

#include "fusedbun/core/error.h"
#include "fusedbun/core/similar_name.h"

namespace fusedbun::launcher {
namespace {

constexpr std::string_view kPrefix = "FUSEDBUN_";
/// Of this prefix and no flags: what `fusedbun` commands talk to a job with, and what a launcher tells its ranks.
constexpr std::string_view kOtherVariables[] = {"FUSEDBUN_TOKEN", "FUSEDBUN_LAST_WORDS"};

std::string name_of(const CLI::Option& option) {
  return option.get_lnames().empty() ? "" : option.get_lnames()[0];
}

bool is_setting(const CLI::Option& option) {
  const std::string name = name_of(option);
  return !name.empty() && name != "help";
}

bool is_switch(const CLI::Option& option) {
  return option.get_items_expected_max() == 0;
}

/// "--no-centralize" of "--centralize,!--no-centralize" too.
CLI::Option* find(CLI::App& command, const std::string& flag) {
  for (CLI::Option* option : command.get_options()) {
    if (is_setting(*option) && option->check_lname(flag)) return option;
  }
  return nullptr;
}

std::string variable_of(std::string_view flag) {
  std::string name(kPrefix);
  for (const char letter : flag)
    name +=
        letter == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(letter)));
  return name;
}

std::vector<std::string> flags_of(const CLI::App& command, const IsTypedOnly& is_typed_only) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options()) {
    if (!is_setting(*option)) continue;
    for (const std::string& flag : option->get_lnames())
      if (!is_typed_only(flag)) flags.push_back(flag);
  }
  return flags;
}

std::string did_you_mean(const std::string& close) {
  return close.empty() ? "" : ", did you mean " + close + "?";
}

void give(CLI::Option& option, const Setting& setting) {
  const auto refused = [&](const std::string& why) {
    return ConfigError(setting.origin + ": " + setting.flag + " = '" +
                       CLI::detail::join(setting.values, "', '") + "': " + why);
  };
  if (is_switch(option)) {
    const bool is_bool =
        setting.values.size() == 1 && (setting.values[0] == "true" || setting.values[0] == "false");
    if (!is_bool) throw refused("it is a switch: true or false");
  } else if (setting.values.empty() ||
             (static_cast<int>(setting.values.size()) > option.get_items_expected_max())) {
    throw refused("it takes " + (option.get_items_expected_max() == 1
                                     ? std::string("one value")
                                     : std::string("at least one value")));
  }
  try {
    option.add_result(is_switch(option) ? std::vector<std::string>{option.get_flag_value(
                                              setting.flag, setting.values[0])}
                                        : setting.values);
    option.run_callback();
  } catch (const CLI::ConversionError&) {
    throw refused("it must be " + option.get_type_name());
  } catch (const CLI::ParseError& error) {
    throw refused(error.what());
  }
}

std::string in_toml(const std::string& value, const CLI::Option& option) {
  static const std::regex number(R"([-+]?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?)");
  if (is_switch(option)) return value;
  if (option.get_type_name() != "TEXT" && std::regex_match(value, number)) return value;
  std::string text = "\"";
  for (const char character : value) {
    const auto code = static_cast<unsigned char>(character);
    if (character == '"' || character == '\\') {
      text += std::string("\\") + character;
    } else if (code < 0x20 || code == 0x7f) {
      constexpr char kDigits[] = "0123456789ABCDEF";
      text += std::string("\\u00") + kDigits[code / 16] + kDigits[code % 16];
    } else {
      text += character;
    }
  }
  return text + "\"";
}

std::string in_toml(const std::vector<std::string>& values, const CLI::Option& option) {
  if (option.get_items_expected_max() <= 1) return in_toml(values.back(), option);
  std::string list;
  for (const std::string& value : values)
    list += (list.empty() ? "" : ", ") + in_toml(value, option);
  return "[" + list + "]";
}

/// "true" or "false" of a switch, which may have been counted or negated.
std::vector<std::string> values_of(const CLI::Option& option) {
  if (!is_switch(option)) return option.results();
  return {CLI::detail::to_flag_value(option.results().back()) > 0 ? "true" : "false"};
}

}  // namespace

std::vector<Setting> settings_of_environment(
    const CLI::App& command, const std::map<std::string, std::string, std::less<>>& environment,
    const IsTypedOnly& is_typed_only) {
  std::map<std::string, std::string> flag_of;  // by variable
  std::vector<std::string> variables;
  for (const std::string& flag : flags_of(command, is_typed_only)) {
    variables.push_back(variable_of(flag));
    flag_of[variables.back()] = flag;
  }
  std::vector<Setting> settings;
  for (auto entry = environment.lower_bound(kPrefix);
       entry != environment.end() && entry->first.starts_with(kPrefix); ++entry) {
    const auto& [variable, value] = *entry;
    if (value.empty()) continue;
    if (const auto flag = flag_of.find(variable); flag != flag_of.end()) {
      settings.push_back({flag->second, {value}, "the environment's " + variable});
      continue;
    }
    if (std::ranges::find(kOtherVariables, variable) != std::end(kOtherVariables)) continue;
    // Without the prefix that all have, which would make any two names alike.
    const std::string word = variable.substr(kPrefix.size());
    std::vector<std::string> words;
    for (const std::string& name : variables) words.push_back(name.substr(kPrefix.size()));
    const std::string close = similar_name(word, words);
    if (!close.empty() && edits_between(word, close) <= 2 && word.size() > 3)
      throw ConfigError("the environment's " + variable + " is no flag of '" + command.get_name() +
                        "'" + did_you_mean(std::string(kPrefix) + close));
  }
  return settings;
}

Origins apply_settings(CLI::App& command, const std::vector<Setting>& settings,
                       const IsTypedOnly& is_typed_only) {
  Origins origins;
  for (const CLI::Option* option : command.get_options())
    if (is_setting(*option) && option->count() > 0) origins[option] = "typed";
  std::map<CLI::Option*, const Setting*> last;
  for (const Setting& setting : settings) {
    FUSEDBUN_REQUIRE(!is_typed_only(setting.flag), ConfigError,
                     setting.origin + ": " + setting.flag +
                         " is of one process or one run: give it on the command line");
    CLI::Option* const option = find(command, setting.flag);
    FUSEDBUN_REQUIRE(
        option != nullptr, ConfigError,
        setting.origin + ": " + setting.flag + " is no flag of '" + command.get_name() + "'" +
            did_you_mean(similar_name(setting.flag, flags_of(command, is_typed_only))));
    last[option] = &setting;
  }
  for (const auto& [option, setting] : last) {
    if (origins.contains(option)) continue;
    give(*option, *setting);
    origins[option] = setting->origin;
  }
  return origins;
}

std::string settings_text(const CLI::App& command, const Origins& origins,
                          const IsTypedOnly& is_typed_only) {
  std::string text;
  for (const std::string& group : command.get_groups()) {
    std::string lines;
    for (const CLI::Option* option :
         command.get_options([&](const CLI::Option* one) { return one->get_group() == group; })) {
      if (!is_setting(*option) || is_typed_only(name_of(*option))) continue;
      const auto origin = origins.find(option);
      if (origin == origins.end()) {
        const std::string value = is_switch(*option) && option->get_default_str().empty()
                                      ? "false"
                                      : option->get_default_str();
        lines += "# " + name_of(*option) + ": " + (value.empty() ? "none" : value) + "\n";
      } else {
        lines += name_of(*option) + " = " + in_toml(values_of(*option), *option) + "  # " +
                 origin->second + "\n";
      }
    }
    if (!lines.empty()) text += (text.empty() ? "" : "\n") + ("# -- " + group) + "\n" + lines;
  }
  return text;
}

std::vector<std::pair<std::string, std::vector<std::string>>> settings_of(
    const CLI::App& command, const IsTypedOnly& is_typed_only) {
  std::vector<std::pair<std::string, std::vector<std::string>>> settings;
  for (const CLI::Option* option : command.get_options()) {
    if (!is_setting(*option) || option->count() == 0 || is_typed_only(name_of(*option))) continue;
    settings.emplace_back(name_of(*option), values_of(*option));
  }
  return settings;
}

}  // namespace fusedbun::launcher

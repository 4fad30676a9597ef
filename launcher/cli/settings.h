#pragma once
// Values of a command's flags that were not typed: from files and from the environment. What is typed wins; else
// FUSEDBUN_<FLAG>, then the last file that has the flag, then the default.
//
// Thread safety: none; used while the command line is read.
#include <CLI/App.hpp>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::launcher {

struct Setting {
  std::string flag;                 ///< "lr": without dashes
  std::vector<std::string> values;  ///< several of a list; "true" or "false" of a switch
  std::string origin;               ///< "run.toml:3", "the environment's FUSEDBUN_LR"
};

/// Says which flags cannot come from elsewhere; as --rank, which is of one process.
using IsTypedOnly = std::function<bool(std::string_view flag)>;

/// The variables FUSEDBUN_<FLAG>, in capitals and with _ for -, of `command`'s flags. Throws ConfigError (78) for a name that is
/// nearly one. Other variables of this prefix, and empty ones, are left alone.
std::vector<Setting> settings_of_environment(
    const CLI::App& command, const std::map<std::string, std::string, std::less<>>& environment,
    const IsTypedOnly& is_typed_only);

/// Where each flag's value is from: "typed", a Setting's origin; absent: the default holds.
using Origins = std::map<const CLI::Option*, std::string>;

/// Gives the flags of `command` that were not typed the last of `settings` that names them. Call it once, before the command's
/// values are read. Throws ConfigError (78) with the origin for a flag that there is not, that is typed only, or a value that the flag does
/// not take.
Origins apply_settings(CLI::App& command, const std::vector<Setting>& settings,
                       const IsTypedOnly& is_typed_only);

/// The flags of `command` by group, without those that are typed only, as TOML that can be given back: what was set, with its
/// origin; defaults as comments.
std::string settings_text(const CLI::App& command, const Origins& origins,
                          const IsTypedOnly& is_typed_only);

/// What was set, typed or not, without what `is_typed_only`: (flag, values) in the order of the command's flags.
std::vector<std::pair<std::string, std::vector<std::string>>> settings_of(
    const CLI::App& command, const IsTypedOnly& is_typed_only);

}  // namespace fusedbun::launcher

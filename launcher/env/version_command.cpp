#include "fusedbun/launcher/env/version_command.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/env/versions.h"

namespace fusedbun::launcher {

CLI::App* add_version_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("version", "Print versions of fusedbun and its libraries");
  command->footer(
      "Examples:\n"
      "  fusedbun version\n"
      "  fusedbun version --output json");
  auto format = add_output_flag(*command);
  command->callback([format] {
    if (*format == OutputFormat::text) {
      std::cout << versions_text() << '\n';
      return;
    }
    nlohmann::ordered_json json;
    for (const auto& [name, version] : versions()) json[std::string(name)] = version;
    std::cout << json.dump(2) << '\n';
  });
  app.set_version_flag("--version", versions_text(), "Print versions and exit");
  return command;
}

}  // namespace fusedbun::launcher

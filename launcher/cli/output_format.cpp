#include "fusedbun/launcher/cli/output_format.h"

#include <CLI/CLI.hpp>
#include <map>
#include <string>

namespace fusedbun::launcher {

std::shared_ptr<const OutputFormat> add_output_flag(CLI::App& command) {
  auto format = std::make_shared<OutputFormat>(OutputFormat::text);
  const std::map<std::string, OutputFormat> names = {{"text", OutputFormat::text},
                                                     {"json", OutputFormat::json}};
  command.add_option("--output", *format, "How data is printed: text or json")
      ->transform(CLI::CheckedTransformer(names).description(""))
      ->default_str("text");
  return format;
}

}  // namespace fusedbun::launcher

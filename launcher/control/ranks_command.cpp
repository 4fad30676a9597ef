#include "fusedbun/launcher/control/ranks_command.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/control/job_flags.h"
#include "fusedbun/launcher/control/rank_table.h"

namespace fusedbun::launcher {
namespace {

void run(const control::JobLocation& location, OutputFormat format) {
  control::ControlClient client(location);
  const control::v1::ListRanksResponse all = all_ranks(client);
  if (format == OutputFormat::json) {
    std::cout << json_of(all);
    return;
  }
  if (all.ranks().empty()) std::cout << "this job's ranks send no heartbeats\n";
  const std::vector<control::v1::Rank> ranks(all.ranks().begin(), all.ranks().end());
  for (const std::string& line : rank_table(ranks)) std::cout << line << '\n';
}

}  // namespace

CLI::App* add_ranks_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("ranks", "Say what each rank of a running job does, and how it is");
  command->footer(
      "Examples:\n"
      "  fusedbun ranks --run-dir runs/first\n"
      "  fusedbun ranks --run-dir runs/first --output json | jq '.ranks[] | select(.liveness != "
      "\"ALIVE\")'\n\n"
      "States: ALIVE; LATE (3 heartbeats missed); STALLED (heartbeats come, no step ends); LOST.\n"
      "Where most ranks wait in one phase and one rank is in another, that one holds them up.");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, format] { run(*location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

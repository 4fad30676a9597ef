#include "fusedbun/launcher/control/dump_command.h"

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <string>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

void dump(const control::JobLocation& location, OutputFormat format) {
  control::ControlClient client(location);
  const control::v1::Diagnostics diagnostics = client.dump();
  if (format == OutputFormat::json) {
    std::cout << json_of(diagnostics);
  } else {
    for (const std::string& file : diagnostics.files()) {
      std::cout << shown((std::filesystem::path(diagnostics.directory()) / file).string()) << '\n';
    }
  }
  std::string missing;
  for (const int rank : diagnostics.missing_ranks())
    missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
  FUSEDBUN_REQUIRE(missing.empty(), TimeoutError,
                   "rank " + missing +
                       " did not write in time, or could not: its process is "
                       "stopped, its disk does not answer, or (the job's warnings say so) is full");
}

}  // namespace

CLI::App* add_dump_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "dump", "Have every rank write what it is doing: stacks, phase, operations, memory");
  command->footer(
      "Examples:\n"
      "  fusedbun dump --run-dir runs/first       # a file per rank, in "
      "runs/first/diagnostics/TIME/\n\n"
      "Of a job that hangs too: it is written on the thread of the heartbeats.");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, format] { dump(*location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

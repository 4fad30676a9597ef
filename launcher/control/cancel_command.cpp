#include "fusedbun/launcher/control/cancel_command.h"

#include <CLI/CLI.hpp>
#include <iostream>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/control/change_text.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

struct CancelFlags {
  int64_t revision = 0;
  std::string reason;
};

void run(const CancelFlags& flags, const control::JobLocation& location, OutputFormat format) {
  control::ControlClient client(location);
  control::v1::CancelChangeRequest request;
  request.set_name("jobs/-/changes/" + std::to_string(flags.revision));
  request.set_reason(flags.reason);
  request.set_request_id(fresh_request_id());
  const control::v1::Change change = client.cancel_change(request);
  std::cout << (format == OutputFormat::json ? json_of(change) : describe(change));
}

}  // namespace

CLI::App* add_cancel_command(CLI::App& app) {
  auto flags = std::make_shared<CancelFlags>();
  CLI::App* const command =
      app.add_subcommand("cancel", "Take a change back whose step has not come");
  command->footer(
      "Examples:\n"
      "  fusedbun history --run-dir runs/first --state SCHEDULED    # which revisions there are\n"
      "  fusedbun cancel 3 --run-dir runs/first --reason 'loss recovered'");
  command->add_option("revision", flags->revision, "The change's number")
      ->required()
      ->check(CLI::PositiveNumber.description(""))
      ->default_str("");
  command->add_option("--reason", flags->reason, "Why, for the people who read the history");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([flags, location, format] { run(*flags, *location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

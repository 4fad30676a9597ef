#include "fusedbun/launcher/control/history_command.h"

#include <google/protobuf/util/time_util.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/control/logged_changes.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/change_text.h"
#include "fusedbun/launcher/control/ended_run.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;

void print_table(const control::v1::ListChangesResponse& all) {
  if (all.changes().empty()) {
    std::cout << "nobody has changed anything yet\n";
    return;
  }
  std::vector<std::vector<std::string>> rows = {
      {"REVISION", "STEP", "STATE", "WHEN", "WHO", "WHAT", "WHY"}};
  for (const Change& change : all.changes()) {
    const std::string when = google::protobuf::util::TimeUtil::ToString(change.create_time());
    rows.push_back({std::to_string(change.revision()), std::to_string(change.effective_step()),
                    Change::State_Name(change.state()), when.substr(0, 19) + "Z", change.actor(),
                    what(change), change.reason()});
  }
  for (const std::string& line : aligned(rows)) std::cout << line << '\n';
}

/// From the log itself, so also of a job that has ended.
void print_file(const control::JobLocation& location) {
  FUSEDBUN_REQUIRE(!location.run_dir.empty(), UsageError,
                   "--as-toml reads changes.log: say --run-dir FOLDER");
  std::cout << changes::logged_changes_as_toml(location.run_dir);
}

control::v1::ListChangesResponse all_of_ended(const std::filesystem::path& run_dir,
                                              const run_folder::Attempt& attempt,
                                              const std::string& state) {
  const control::v1::ListChangesResponse logged = control::logged_changes(run_dir, attempt.steps);
  control::v1::ListChangesResponse wanted;
  for (const Change& change : logged.changes()) {
    if (state.empty() || Change::State_Name(change.state()) == state)
      *wanted.add_changes() = change;
  }
  return wanted;
}

void run(const control::JobLocation& location, const std::string& state, OutputFormat format) {
  control::v1::ListChangesResponse all;
  ask_job_or_record(
      location,
      [&] {
        control::ControlClient client(location);
        all = all_changes(client, state.empty() ? "" : "state=" + state);
      },
      [&](const run_folder::Attempt& attempt) {
        all = all_of_ended(location.run_dir, attempt, state);
      });
  if (format == OutputFormat::json) {
    std::cout << json_of(all);
  } else {
    print_table(all);
  }
}

}  // namespace

CLI::App* add_history_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "history", "List the changes of a job that runs or has ended: when, who, what and why");
  command->footer(
      "Examples:\n"
      "  fusedbun history --run-dir runs/first\n"
      "  fusedbun history --run-dir runs/first --state SCHEDULED    # what 'cancel' can take back\n"
      "  fusedbun history --run-dir runs/first --as-toml > changes.toml    # for train --changes");
  auto state = std::make_shared<std::string>();
  command->add_option("--state", *state, "Only these: SCHEDULED, APPLIED, CANCELLED or REJECTED")
      ->default_str("all");
  auto as_file = std::make_shared<bool>(false);
  command->add_flag("--as-toml", *as_file,
                    "Write the changes in use as a file for 'train --changes', from a run's log");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, state, format, as_file] {
    *as_file ? print_file(*location) : run(*location, *state, *format);
  });
  return command;
}

}  // namespace fusedbun::launcher

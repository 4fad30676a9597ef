#include "fusedbun/launcher/control/set_command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <thread>
#include <vector>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/control/assignments.h"
#include "fusedbun/launcher/control/change_text.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;
using control::v1::CreateChangeRequest;

struct SetFlags {
  std::vector<std::string> assignments;
  std::string group = "all";
  int64_t at_step = 0;
  const CLI::Option* at_step_given = nullptr;
  std::string reason;
  bool dry_run = false;
  bool wait = false;
  double timeout_seconds = 600;
};

CreateChangeRequest request_of(const SetFlags& flags) {
  CreateChangeRequest request;
  Change& change = *request.mutable_change();
  *change.add_patches() = read_assignments(flags.assignments, flags.group);
  if (flags.at_step_given->count() > 0) {
    change.set_apply_at_step(flags.at_step);
  } else {
    change.set_next_step(true);
  }
  change.set_reason(flags.reason);
  request.set_validate_only(flags.dry_run);
  request.set_request_id(fresh_request_id());
  return request;
}

/// Somebody may be faster between the read and the change; then the change is made on top of theirs, once.
Change send(control::ControlClient& client, CreateChangeRequest request) {
  request.set_etag(client.hyperparameters().etag());
  try {
    return client.create_change(request);
  } catch (const control::EtagConflict&) {
    request.set_etag(client.hyperparameters().etag());
    return client.create_change(request);
  }
}

Change wait_until_applied(control::ControlClient& client, Change change, double timeout_seconds) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  while (change.state() == Change::SCHEDULED) {
    FUSEDBUN_REQUIRE(std::chrono::steady_clock::now() < deadline, TimeoutError,
                     "the change is accepted, but step " + std::to_string(change.effective_step()) +
                         " has not ended within " + text_of(timeout_seconds) + " s");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    change = client.change(change.name());
  }
  FUSEDBUN_REQUIRE(change.state() == Change::APPLIED, ConfigError,
                   "the change was not used: " + change.error());
  return change;
}

void run(const SetFlags& flags, const control::JobLocation& location, OutputFormat format) {
  FUSEDBUN_REQUIRE(!flags.wait || !flags.dry_run, UsageError,
                   "--wait and --dry-run exclude each other");
  const CreateChangeRequest request = request_of(flags);
  control::ControlClient client(location);
  Change change = send(client, request);
  if (flags.wait) change = wait_until_applied(client, std::move(change), flags.timeout_seconds);
  if (format == OutputFormat::json) {
    std::cout << json_of(change);
  } else {
    std::cout << describe(change);
  }
}

/// The flags of a change, whatever it assigns.
void add_change_flags(CLI::App& command, const std::shared_ptr<SetFlags>& flags) {
  command.add_option("--group", flags->group, "Param group, or all")->group("Change");
  flags->at_step_given = command
                             .add_option("--at-step", flags->at_step,
                                         "First job step that uses it; default: the next possible")
                             ->default_str("")
                             ->group("Change");
  command.add_option("--reason", flags->reason, "Why, for the people who read the history")
      ->group("Change");
  command
      .add_flag("--dry-run", flags->dry_run, "Check it and show what would hold; change nothing")
      ->group("Change");
  command.add_flag("--wait", flags->wait, "Come back when a step that used it has ended")
      ->group("Change");
  command.add_option("--timeout", flags->timeout_seconds, "Seconds that --wait waits")
      ->group("Change");
  const auto location = add_job_flags(command);
  const auto format = add_output_flag(command);
  command.callback([flags, location, format] { run(*flags, *location, *format); });
}

}  // namespace

CLI::App* add_set_command(CLI::App& app) {
  auto flags = std::make_shared<SetFlags>();
  CLI::App* const command = app.add_subcommand(
      "set", "Change hyperparameters of a running job, on all ranks from one step on");
  command->footer(
      "Examples:\n"
      "  fusedbun set lr=3e-4 --run-dir runs/first --reason 'loss spikes' --wait\n"
      "  fusedbun set lr_scale=0.5 --run-dir runs/first             # half of what the schedule "
      "says\n"
      "  fusedbun set lr=1e-4 Lambda=0.05 --group decoder --at-step 500 --dry-run --run-dir "
      "runs/first\n\n"
      "lr=VALUE is pinned: the schedule has no say until 'fusedbun unpin' (or lr=schedule).\n\n" +
      assignable_names());
  command->add_option("assignments", flags->assignments, "NAME=VALUE, one or more")
      ->required()
      ->default_str("");
  add_change_flags(*command, flags);
  return command;
}

CLI::App* add_unpin_command(CLI::App& app) {
  auto flags = std::make_shared<SetFlags>();
  flags->assignments = {"lr=schedule"};
  CLI::App* const command =
      app.add_subcommand("unpin", "Give a pinned learning rate back to the schedule");
  command->footer(
      "Examples:\n"
      "  fusedbun unpin --run-dir runs/first --reason 'spike is over'");
  add_change_flags(*command, flags);
  return command;
}

}  // namespace fusedbun::launcher

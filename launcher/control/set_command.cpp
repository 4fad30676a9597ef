#include "fusedbun/launcher/control/set_command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <thread>
#include <vector>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/control/assignments.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Change;
using control::v1::CreateChangeRequest;
using control::v1::HyperparameterValues;

struct Flags {
  std::vector<std::string> assignments;
  std::string group = "all";
  int64_t at_step = 0;
  const CLI::Option* at_step_given = nullptr;
  std::string reason;
  bool dry_run = false;
  bool wait = false;
  double timeout_seconds = 600;
};

/// The same change sent twice is taken once.
std::string fresh_request_id() {
  std::ifstream source("/proc/sys/kernel/random/uuid");
  std::string id;
  source >> id;
  return id;
}

CreateChangeRequest request_of(const Flags& flags) {
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

std::string value_text(const HyperparameterValues& values,
                       const google::protobuf::FieldDescriptor* field) {
  const auto* reflection = values.GetReflection();
  if (!reflection->HasField(values, field))
    return "schedule";  // only the learning rate may be absent
  if (field->cpp_type() == field->CPPTYPE_BOOL)
    return reflection->GetBool(values, field) ? "true" : "false";
  return text_of(reflection->GetDouble(values, field));
}

void print_difference(const std::string& where, const HyperparameterValues& before,
                      const HyperparameterValues& after) {
  const auto* descriptor = HyperparameterValues::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    const std::string from = value_text(before, field);
    const std::string to = value_text(after, field);
    if (from != to)
      std::cout << "  " << where << " " << field->name() << ": " << from << " -> " << to << '\n';
  }
}

void print_change(const Change& change) {
  const std::string step = std::to_string(change.effective_step());
  if (change.state() == Change::STATE_UNSPECIFIED) {
    std::cout << "dry run: would be used from step " << step << " on; nothing was changed\n";
  } else if (change.state() == Change::APPLIED) {
    std::cout << "change " << change.revision() << ": in use since step " << step << '\n';
  } else {
    std::cout << "change " << change.revision() << ": accepted, used from step " << step << " on\n";
  }
  print_difference("job", change.previous().job_values(), change.resulting().job_values());
  for (int i = 0; i < change.resulting().groups_size(); ++i) {
    const auto& group = change.resulting().groups(i);
    print_difference(group.name(), change.previous().groups(i).values(), group.values());
  }
}

void run(const Flags& flags, const control::JobLocation& location, OutputFormat format) {
  FUSEDBUN_REQUIRE(!flags.wait || !flags.dry_run, UsageError,
                   "--wait and --dry-run exclude each other");
  const CreateChangeRequest request = request_of(flags);
  control::ControlClient client(location);
  Change change = send(client, request);
  if (flags.wait) change = wait_until_applied(client, std::move(change), flags.timeout_seconds);
  if (format == OutputFormat::json) {
    std::cout << json_of(change);
  } else {
    print_change(change);
  }
}

}  // namespace

CLI::App* add_set_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command = app.add_subcommand(
      "set", "Change hyperparameters of a running job, on all ranks from one step on");
  command->footer(
      "Examples:\n"
      "  fusedbun set lr=3e-4 --run-dir runs/first --reason 'loss spikes' --wait\n"
      "  fusedbun set lr=schedule Lambda=0.05 --group decoder --at-step 500 --run-dir "
      "runs/first\n\n" +
      assignable_names());
  command->add_option("assignments", flags->assignments, "NAME=VALUE, one or more")
      ->required()
      ->default_str("");
  command->add_option("--group", flags->group, "Param group, or all")->group("Change");
  flags->at_step_given = command
                             ->add_option("--at-step", flags->at_step,
                                          "First job step that uses it; default: the next possible")
                             ->default_str("")
                             ->group("Change");
  command->add_option("--reason", flags->reason, "Why, for the people who read changes.log")
      ->group("Change");
  command
      ->add_flag("--dry-run", flags->dry_run, "Check it and show what would hold; change nothing")
      ->group("Change");
  command->add_flag("--wait", flags->wait, "Come back when a step that used it has ended")
      ->group("Change");
  command->add_option("--timeout", flags->timeout_seconds, "Seconds that --wait waits")
      ->group("Change");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([flags, location, format] { run(*flags, *location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

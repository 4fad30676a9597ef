#include "fusedbun/launcher/control/health_command.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::ControlClient;

/// What people say, and the name of grpc.health.v1.
const std::map<std::string, std::string> kNames = {
    {"server", ""},
    {"control", "fusedbun.control.v1.TrainingControl"},
    {"progress", "fusedbun.progress"}};

std::string name_of(ControlClient::Health health) {
  switch (health) {
    case ControlClient::Health::serving:
      return "SERVING";
    case ControlClient::Health::not_serving:
      return "NOT_SERVING";
    case ControlClient::Health::unknown_name:
      return "SERVICE_UNKNOWN";
  }
  FUSEDBUN_ASSERT(false, "every health has a name");
}

void run(const std::string& only, const control::JobLocation& location, OutputFormat format) {
  ControlClient client(location);
  nlohmann::ordered_json answers = nlohmann::ordered_json::object();
  std::string bad;
  for (const auto& [name, service] : kNames) {
    if (only != "all" && only != name) continue;
    const std::string answer = name_of(client.health(service));
    answers[name] = answer;
    if (answer != "SERVING") bad += (bad.empty() ? "" : ", ") + name + " is " + answer;
  }
  if (format == OutputFormat::json) {
    std::cout << answers.dump(2) << '\n';
  } else {
    for (const auto& [name, answer] : answers.items()) {
      std::cout << name << std::string(10 - name.size(), ' ') << answer.get<std::string>() << '\n';
    }
  }
  FUSEDBUN_REQUIRE(bad.empty(), ErrorOf<ExitCode::unclassified>, "not healthy: " + bad);
}

}  // namespace

CLI::App* add_health_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "health", "Exit with 0 if a job is healthy, 1 if it is not, 69 if it does not answer");
  command->footer(
      "Examples:\n"
      "  fusedbun health --run-dir runs/first\n"
      "  fusedbun health server --run-dir runs/first      # as a liveness probe: does it answer?\n"
      "  fusedbun health progress --run-dir runs/first    # for alerts: do steps finish?");
  auto name = std::make_shared<std::string>("all");
  command
      ->add_option(
          "name", *name,
          "server (it answers), control (it takes changes), progress (steps finish), or all")
      ->check(CLI::IsMember({"server", "control", "progress", "all"}).description(""));
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([name, location, format] { run(*name, *location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

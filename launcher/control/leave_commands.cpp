#include "fusedbun/launcher/control/leave_commands.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <iostream>
#include <optional>
#include <thread>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::ControlClient;
using control::v1::Job;

struct LeaveFlags {
  std::string reason;
  std::optional<double> within_seconds;  ///< drain
  bool force = false;                    ///< stop
  bool wait = false;
  double timeout_seconds = 600;
};
using Ask = Job (*)(ControlClient& client, const LeaveFlags& flags);

/// Until its control plane has gone: the last thing that a job takes down.
void wait_until_gone(ControlClient& client, double timeout_seconds) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  try {
    while (std::chrono::steady_clock::now() < deadline) {
      client.job();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  } catch (const UnavailableError&) {
    return;
  }
  throw TimeoutError("the job was asked, but has not left within " + text_of(timeout_seconds) +
                     " s");
}

void run(Ask ask, const LeaveFlags& flags, const control::JobLocation& location,
         OutputFormat format) {
  const double within = flags.within_seconds.value_or(0);
  FUSEDBUN_REQUIRE(std::isfinite(within) && within >= 0, ConfigError,
                   "--deadline " + text_of(within) + " is not a number of seconds");
  ControlClient client(location);
  const Job job = ask(client, flags);
  if (flags.wait) wait_until_gone(client, flags.timeout_seconds);
  if (format == OutputFormat::json) {
    std::cout << json_of(job);
    return;
  }
  const char* const how = flags.wait    ? "; the job has left\n"
                          : flags.force ? "; its processes end now\n"
                                        : "; it leaves at a step boundary\n";
  std::cout << "step " << job.step() << ": " << shown(job.state_reason()) << how;
}

CLI::App* add(CLI::App& app, Ask ask, const std::string& name, const std::string& purpose,
              const std::string& footer) {
  auto flags = std::make_shared<LeaveFlags>();
  CLI::App* const command = app.add_subcommand(name, purpose);
  command->footer(footer);
  command->add_option("--reason", flags->reason, "Why, for the people who ask for its state");
  if (name == "drain") {
    command->add_option("--deadline", flags->within_seconds,
                        "Seconds after which its processes end, saved or not (exit code 75)");
  } else {
    command->add_flag("--force", flags->force,
                      "End its processes at once, even if they hang: nothing is saved");
  }
  command->add_flag("--wait", flags->wait, "Come back when the job has left");
  command->add_option("--timeout", flags->timeout_seconds, "Seconds that --wait waits");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([ask, flags, location, format] { run(ask, *flags, *location, *format); });
  return command;
}

}  // namespace

CLI::App* add_drain_command(CLI::App& app) {
  return add(
      app,
      [](ControlClient& client, const LeaveFlags& flags) {
        return client.drain(flags.reason, flags.within_seconds);
      },
      "drain",
      "Have a job finish its step, save the model and leave, to be run again (exit code 75)",
      "Examples:\n"
      "  fusedbun drain --run-dir runs/first --reason 'the node goes down at noon' --wait\n"
      "  fusedbun drain --run-dir runs/first --deadline 90     # then it leaves without a "
      "checkpoint\n\n"
      "Its health turns NOT_SERVING first, then it takes no changes any more. SIGTERM does "
      "the same.");
}

CLI::App* add_stop_command(CLI::App& app) {
  return add(
      app,
      [](ControlClient& client, const LeaveFlags& flags) {
        return client.stop(flags.reason, flags.force);
      },
      "stop",
      "Have a job finish its step, validate, save the model and leave for good (exit code 0)",
      "Examples:\n"
      "  fusedbun stop --run-dir runs/first --reason 'good enough'\n"
      "  fusedbun stop --run-dir runs/first --force            # of one that hangs");
}

}  // namespace fusedbun::launcher

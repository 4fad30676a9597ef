#include "fusedbun/launcher/control/pause_commands.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <thread>

#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::ControlClient;
using control::v1::Job;

struct PauseFlags {
  std::string reason;
  bool wait = false;
  double timeout_seconds = 600;
};

Job wait_until_paused(ControlClient& client, double timeout_seconds) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  while (std::chrono::steady_clock::now() < deadline) {
    Job job = client.job();
    if (job.state() == Job::PAUSED) return job;
    FUSEDBUN_REQUIRE(job.state() == Job::RUNNING || job.state() == Job::DEGRADED, UnavailableError,
                     "the job leaves before it could be paused");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  throw TimeoutError("the job was asked, but is not paused within " + text_of(timeout_seconds) +
                     " s: its step takes longer");
}

void pause(const PauseFlags& flags, const control::JobLocation& location, OutputFormat format) {
  ControlClient client(location);
  Job job = client.pause(flags.reason);
  if (flags.wait) job = wait_until_paused(client, flags.timeout_seconds);
  if (format == OutputFormat::json) {
    std::cout << json_of(job);
  } else {
    std::cout << "step " << job.step() << ": " << shown(job.state_reason())
              << (job.state() == Job::PAUSED ? "; the job is paused\n"
                                             : "; it pauses at a step boundary\n");
  }
}

}  // namespace

CLI::App* add_pause_command(CLI::App& app) {
  auto flags = std::make_shared<PauseFlags>();
  CLI::App* const command =
      app.add_subcommand("pause", "Hold a job between two steps, with all that it has in memory");
  command->footer(
      "Examples:\n"
      "  fusedbun pause --run-dir runs/first --reason 'the node is needed for an hour' --wait\n"
      "  fusedbun resume --run-dir runs/first\n\n"
      "Its processes live on and watch over one another. It may be changed meanwhile, drained and "
      "stopped; a checkpoint is saved before, or by drain.");
  command->add_option("--reason", flags->reason, "Why, for the people who ask for its state");
  command->add_flag("--wait", flags->wait, "Come back when all ranks are held");
  command->add_option("--timeout", flags->timeout_seconds, "Seconds that --wait waits");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([flags, location, format] { pause(*flags, *location, *format); });
  return command;
}

CLI::App* add_resume_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand("resume", "Let a paused job go on");
  command->footer(
      "Examples:\n"
      "  fusedbun resume --run-dir runs/first");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, format] {
    ControlClient client(*location);
    const Job job = client.resume();
    if (*format == OutputFormat::json) {
      std::cout << json_of(job);
    } else {
      std::cout << "step " << job.step() << ": the job goes on\n";
    }
  });
  return command;
}

}  // namespace fusedbun::launcher

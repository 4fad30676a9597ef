#include "fusedbun/launcher/control/checkpoint_save_command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::ControlClient;
using control::v1::Checkpoint;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenLooks{50};

struct SaveFlags {
  std::string reason;
  bool wait = true;
  double timeout_seconds = 600;
};

/// Nothing while another one is being written.
std::optional<Checkpoint> ask(ControlClient& client, const std::string& reason) {
  control::v1::CreateCheckpointRequest request;
  request.set_reason(reason);
  request.set_request_id(fresh_request_id());
  try {
    return client.create_checkpoint(request);
  } catch (const control::SaveUnderWay&) {
    return std::nullopt;
  }
}

[[noreturn]] void throw_failure(const Checkpoint& failed) {
  const std::string sentence = "the checkpoint of step " + std::to_string(failed.step()) +
                               " is not saved: " + failed.error();
  if (failed.error_reason() == "WRITE_FAILED") throw IoError(sentence);
  if (failed.error_reason() == "RUN_ENDED") throw UnavailableError(sentence);
  throw ConfigError(sentence);
}

Checkpoint save(ControlClient& client, const SaveFlags& flags) {
  const auto deadline = Clock::now() + std::chrono::duration<double>(flags.timeout_seconds);
  std::optional<Checkpoint> asked;
  while (Clock::now() < deadline) {
    if (!asked) asked = ask(client, flags.reason);
    if (asked && !flags.wait) return *asked;
    if (asked) asked = client.checkpoint(asked->name());
    if (asked && asked->state() == Checkpoint::ACTIVE) return *asked;
    if (asked && asked->state() == Checkpoint::DELETED) {
      // It was durable; newer ones have taken its place since this command looked last, and the newest has all that it had.
      asked = client.checkpoint(client.job().last_checkpoint());
      continue;
    }
    if (asked && asked->state() == Checkpoint::FAILED) {
      if (asked->error_reason() != "SAVE_UNDER_WAY") throw_failure(*asked);
      asked.reset();  // the program's own save came first
    }
    std::this_thread::sleep_for(kBetweenLooks);
  }
  throw TimeoutError("no checkpoint is durable after " + text_of(flags.timeout_seconds) +
                     " s (--timeout); fusedbun status says what the job does");
}

void run(const SaveFlags& flags, const control::JobLocation& location, OutputFormat format) {
  ControlClient client(location);
  const Checkpoint saved = save(client, flags);
  if (format == OutputFormat::json) {
    std::cout << json_of(saved);
    return;
  }
  constexpr std::string_view kScheme = "file://";
  const std::string step = std::to_string(saved.step());
  if (saved.state() == Checkpoint::ACTIVE) {
    std::cout << "the checkpoint of step " << step
              << " is durable: " << shown(saved.uri().substr(kScheme.size())) << '\n';
  } else {
    std::cout << "the job saves a checkpoint after step " << step
              << "; fusedbun watch tells when it is durable\n";
  }
}

}  // namespace

CLI::App* add_checkpoint_save_command(CLI::App& group) {
  auto flags = std::make_shared<SaveFlags>();
  CLI::App* const command = group.add_subcommand(
      "save", "Have a running job save a checkpoint now; comes back when it is durable");
  command->footer(
      "Examples:\n"
      "  fusedbun checkpoint save --run-dir runs/first --reason 'before the higher lr'\n\n"
      "Training goes on meanwhile. While another checkpoint is being written this one waits. Exit "
      "code 74: the disk did not take it; the job goes on, and the checkpoint before it stays.");
  command->add_option("--reason", flags->reason, "Why, for the people who watch");
  command->add_flag("--wait,!--no-wait", flags->wait,
                    "Come back when it is durable, or as soon as the job has been asked");
  command->add_option("--timeout", flags->timeout_seconds, "Seconds to wait");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([flags, location, format] { run(*flags, *location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

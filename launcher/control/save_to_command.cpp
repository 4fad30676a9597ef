#include "fusedbun/launcher/control/save_to_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/ended_run.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;

void require_running(const control::JobLocation& location) {
  FUSEDBUN_REQUIRE(location.address.empty(), UsageError,
                   "save-to speaks to a job through its run folder: give --run-dir");
  FUSEDBUN_REQUIRE(
      !run_folder::read_run_record(location.run_dir).empty() && !newest_ended(location),
      UnavailableError, "no run is going on in " + location.run_dir.string());
}

// A link, not a file: where the disk is full, a link can still be made.
void leave_link(const fs::path& link, const fs::path& target) {
  fs::path next = link;
  next += "." + std::to_string(::getpid());
  std::error_code error;
  fs::create_symlink(target, next, error);
  if (!error) fs::rename(next, link, error);  // at once: the job looks ten times a second
  FUSEDBUN_REQUIRE(!error, IoError, "cannot make " + link.string() + ": " + error.message());
}

void save_to(const fs::path& given, const control::JobLocation& location) {
  require_running(location);
  const fs::path target = fs::absolute(given).lexically_normal();
  std::error_code error;
  FUSEDBUN_REQUIRE(!fs::exists(fs::symlink_status(target, error)), ConfigError,
                   target.string() + " is there already: name a file or a folder that is not");
  FUSEDBUN_REQUIRE(fs::is_directory(target.parent_path(), error), ConfigError,
                   target.parent_path().string() + " is no folder");
  leave_link(location.run_dir / run_folder::kSaveToName, target);
  std::cout << "the run in " << shown(location.run_dir.string()) << " saves its model as "
            << shown(target.string()) << '\n';
}

}  // namespace

CLI::App* add_save_to_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("save-to", "Have a running job save its model in another place");
  command->footer(
      "Examples:\n"
      "  fusedbun save-to /other/disk/model.safetensors --run-dir runs/first\n\n"
      "For a job whose disk is full or gone: it tries to save until it can, and looks here each "
      "time. The path is\none of rank 0's host.");
  auto target = std::make_shared<fs::path>();
  command
      ->add_option("path", *target,
                   "A file named *.safetensors, or a folder, that does not exist yet")
      ->required();
  const auto location = add_job_flags(*command);
  command->callback([target, location] { save_to(*target, *location); });
  return command;
}

}  // namespace fusedbun::launcher

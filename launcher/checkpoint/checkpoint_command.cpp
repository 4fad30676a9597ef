#include "fusedbun/launcher/checkpoint/checkpoint_command.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <memory>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/checkpoint_reader.h"
#include "fusedbun/dist/checkpoint/rewrite.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/launcher/checkpoint/checkpoint_text.h"
#include "fusedbun/launcher/cli/output_format.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;
using checkpoint::CheckpointFolder;
using checkpoint::CheckpointReader;

/// Which checkpoint a person means.
struct Which {
  fs::path run_dir;
  std::string checkpoint;  ///< a step, or a folder; empty: the newest
};

CheckpointFolder folder_of(const Which& which) {
  FUSEDBUN_REQUIRE(!which.run_dir.empty(), UsageError,
                   "say whose checkpoints: --run-dir FOLDER, or $FUSEDBUN_RUN_DIR");
  FUSEDBUN_REQUIRE(fs::is_directory(which.run_dir), DataError,
                   which.run_dir.string() + " is no folder");
  return CheckpointFolder(which.run_dir / run_folder::kCheckpointsName);
}

fs::path path_of(const Which& which) {
  const std::string& text = which.checkpoint;
  const std::optional<int64_t> step = checkpoint::read_step(text);
  if (!text.empty() && !step) return text;
  const CheckpointFolder folder = folder_of(which);
  const std::vector<int64_t> steps = folder.steps();
  FUSEDBUN_REQUIRE(!steps.empty(), DataError,
                   "there are no checkpoints in " + folder.root().string());
  if (!step) return folder.path_of(steps.front());
  FUSEDBUN_REQUIRE(std::ranges::find(steps, *step) != steps.end(), DataError,
                   "there is no checkpoint of step " + text + " in " + folder.root().string() +
                       ": fusedbun checkpoint list shows those there are");
  return folder.path_of(*step);
}

std::shared_ptr<Which> add_run_dir_flag(CLI::App& command) {
  auto which = std::make_shared<Which>();
  command.add_option("--run-dir", which->run_dir, "Folder of the run")->envname("FUSEDBUN_RUN_DIR");
  return which;
}

std::shared_ptr<Which> add_which(CLI::App& command) {
  auto which = add_run_dir_flag(command);
  command
      .add_option("checkpoint", which->checkpoint, "A step of the run, or a checkpoint's folder")
      ->type_name("[STEP|FOLDER]")
      ->default_str("the newest");
  return which;
}

CheckpointSeen seen(const fs::path& folder, int64_t job_step) {
  CheckpointSeen found{.job_step = job_step, .folder = folder, .manifest = {}, .problem = {}};
  try {
    found.manifest = checkpoint::read_manifest(folder);
  } catch (const Error& error) {
    found.problem = error.what();
  }
  return found;
}

void add_list(CLI::App& group) {
  CLI::App* const command =
      group.add_subcommand("list", "The checkpoints of a run, the newest first");
  const auto which = add_run_dir_flag(*command);
  const auto format = add_output_flag(*command);
  command->callback([which, format] {
    const CheckpointFolder folder = folder_of(*which);
    std::string latest;
    std::ifstream(folder.root() / checkpoint::kLatestName) >> latest;
    std::vector<CheckpointSeen> list;
    for (const int64_t step : folder.steps()) {
      list.push_back(seen(folder.path_of(step), step));
      list.back().is_latest = list.back().folder.filename() == latest;
    }
    std::cout << (*format == OutputFormat::json ? json_of(list) : text_of(list));
  });
}

void add_show(CLI::App& group) {
  CLI::App* const command = group.add_subcommand("show", "What a checkpoint says of itself");
  const auto which = add_which(*command);
  const auto format = add_output_flag(*command);
  command->callback([which, format] {
    const fs::path path = path_of(*which);
    CheckpointSeen shown{.job_step = 0, .folder = path, .manifest = {}, .problem = {}};
    shown.manifest = checkpoint::read_manifest(path);
    shown.job_step = shown.manifest.job_step;
    std::cout << (*format == OutputFormat::json ? json_of(shown) : text_of(shown));
  });
}

void add_verify(CLI::App& group) {
  CLI::App* const command = group.add_subcommand(
      "verify", "Read every byte of a checkpoint and compare it with its digest");
  const auto which = add_which(*command);
  auto all = std::make_shared<bool>(false);
  command->add_flag("--all", *all, "Every checkpoint of the run");
  command->callback([which, all] {
    std::vector<fs::path> paths;
    if (*all) {
      const CheckpointFolder folder = folder_of(*which);
      for (const int64_t step : folder.steps()) paths.push_back(folder.path_of(step));
    } else {
      paths.push_back(path_of(*which));
    }
    std::string damaged;
    for (const fs::path& path : paths) {
      const auto start = std::chrono::steady_clock::now();
      try {
        const CheckpointReader reader(path);
        reader.verify();
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        std::printf("%s: whole, %s read in %.1f s\n", path.c_str(),
                    text_of_bytes(bytes_of(reader.manifest())).c_str(), took.count());
      } catch (const DataError& error) {
        if (!*all) throw;
        std::printf("%s\n", error.what());
        if (damaged.empty()) damaged = error.what();
      }
    }
    FUSEDBUN_REQUIRE(damaged.empty(), DataError, damaged);
  });
}

void add_export(CLI::App& group) {
  CLI::App* const command = group.add_subcommand(
      "export",
      "Write the model of a checkpoint as a folder that transformers opens, or as one file");
  const auto which = add_which(*command);
  auto to = std::make_shared<fs::path>();
  command
      ->add_option("--to", *to,
                   "A folder, which gets the weights, config.json and the tokenizer's files, or a "
                   "file named *.safetensors, for the weights alone")
      ->required();
  command->callback([which, to] {
    const checkpoint::ModelPlace place = checkpoint::place_of(*to);
    checkpoint::require_writable(place);
    const CheckpointReader reader(path_of(*which));
    reader.verify();
    checkpoint::export_model(reader, place);
    std::cout << "the model after " << reader.manifest().job_step << " steps: " << to->string()
              << "\n";
  });
}

void add_reshard(CLI::App& group) {
  CLI::App* const command = group.add_subcommand(
      "reshard",
      "Write a checkpoint as another number of ranks would have; not needed to load it there");
  const auto which = add_which(*command);
  auto ranks = std::make_shared<int>(1);
  auto to = std::make_shared<fs::path>();
  command->add_option("--ranks", *ranks, "How many files each tensor is divided between")
      ->required();
  command->add_option("--to", *to, "Folder in which it becomes step-N")->required();
  command->callback([which, ranks, to] {
    const CheckpointReader reader(path_of(*which));
    reader.verify();
    const CheckpointFolder folder(*to);
    const fs::path target = folder.path_of(reader.manifest().job_step);
    FUSEDBUN_REQUIRE(!fs::exists(target), ConfigError,
                     target.string() + " is there already: give another --to");
    checkpoint::reshard(reader, folder, *ranks);
    std::cout << target.string() << "\n";
  });
}

}  // namespace

CLI::App* add_checkpoint_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("checkpoint", "Save, look at, check and convert the checkpoints of a run");
  command->require_subcommand(1);
  command->footer(
      "Examples:\n"
      "  fusedbun checkpoint list --run-dir runs/first\n"
      "  fusedbun checkpoint verify --run-dir runs/first --all\n"
      "  fusedbun checkpoint export --run-dir runs/first --to models/first\n"
      "  fusedbun checkpoint show runs/first/checkpoints/step-500 --output json");
  add_list(*command);
  add_show(*command);
  add_verify(*command);
  add_export(*command);
  add_reshard(*command);
  return command;
}

}  // namespace fusedbun::launcher

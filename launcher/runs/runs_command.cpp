#include "fusedbun/launcher/runs/runs_command.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/runs/found_runs.h"

namespace fusedbun::launcher {
namespace {

std::string loss_text(const std::optional<double>& loss) {
  if (!loss) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", *loss);
  return text;
}

/// "42 s", "17 min", "3 h", "12 days"
std::string age_text(int64_t seconds) {
  if (seconds < 120) return std::to_string(seconds) + " s";
  if (seconds < 2 * 3600) return std::to_string(seconds / 60) + " min";
  if (seconds < 2 * 86400) return std::to_string(seconds / 3600) + " h";
  return std::to_string(seconds / 86400) + " days";
}

std::string end_text(const FoundRun& run) {
  const run_folder::Attempt& attempt = run.attempt;
  std::string text = attempt.exit_code ? "exit code " + std::to_string(*attempt.exit_code) : "";
  if (run.state == "KILLED") text = "without a word";
  if (run.state.starts_with("RUNNING"))
    text = "pid " + std::to_string(attempt.place.pid) + " on " + attempt.place.host;
  return text + (run.attempts > 1 ? ", attempt " + std::to_string(run.attempts) : "");
}

void print_table(const RunsFound& found) {
  std::vector<std::vector<std::string>> rows = {
      {"RUN", "STATE", "STEP", "LOSS", "VALIDATION", "AGE", "RANKS", ""}};
  for (const FoundRun& run : found.runs) {
    rows.push_back({run.folder.string(), run.state,
                    std::to_string(run.steps) + " of " + std::to_string(run.attempt.total_steps),
                    loss_text(run.loss), loss_text(run.validation_loss),
                    age_text(run.seconds_since), std::to_string(run.attempt.world_size),
                    end_text(run)});
  }
  for (const std::string& line : aligned(rows)) std::cout << line << '\n';
}

nlohmann::ordered_json json_of(const FoundRun& run) {
  const auto number = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
  };
  return {{"run_dir", run.folder.string()},
          {"state", run.state},
          {"steps", run.steps},
          {"total_steps", run.attempt.total_steps},
          {"loss", number(run.loss)},
          {"validation_loss", number(run.validation_loss)},
          {"seconds_since", run.seconds_since},
          {"attempts", run.attempts},
          {"run", nlohmann::ordered_json::parse(run_folder::json_of(run.attempt))}};
}

void show_runs(const std::vector<std::filesystem::path>& folders, OutputFormat format) {
  const RunsFound found = find_runs(folders);
  for (const std::string& problem : found.problems)
    run_folder::write_to_standard_error("fusedbun: " + shown(problem) + "\n");
  if (format == OutputFormat::json) {
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (const FoundRun& run : found.runs) runs.push_back(json_of(run));
    std::cout << runs.dump(2) << '\n';
  } else if (!found.runs.empty()) {
    print_table(found);
  } else {
    std::cout << "no runs\n";
  }
}

}  // namespace

CLI::App* add_runs_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("runs", "List the live and the finished runs of folders");
  command->footer(
      "Examples:\n"
      "  fusedbun runs                                 # those below runs/\n"
      "  fusedbun runs /shared/team --output json | jq -r '.[] | select(.state == "
      "\"FAILED\").run_dir'");
  auto folders = std::make_shared<std::vector<std::filesystem::path>>();
  command->add_option("folders", *folders, "Folders to look through, and all below them")
      ->default_str("runs");
  const auto format = add_output_flag(*command);
  command->callback([folders, format] {
    show_runs(folders->empty() ? std::vector<std::filesystem::path>{"runs"} : *folders, *format);
  });
  return command;
}

}  // namespace fusedbun::launcher

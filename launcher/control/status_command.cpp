#include "fusedbun/launcher/control/status_command.h"

#include <google/protobuf/util/time_util.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "fusedbun/dist/changes/change.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/control/ended_run.h"
#include "fusedbun/launcher/control/job_flags.h"

namespace fusedbun::launcher {
namespace {

using control::v1::Hyperparameters;
using control::v1::Job;
using google::protobuf::util::TimeUtil;

std::string age_of(const google::protobuf::Timestamp& time) {
  const int64_t milliseconds = TimeUtil::DurationToMilliseconds(TimeUtil::GetCurrentTime() - time);
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s ago", static_cast<double>(milliseconds) / 1e3);
  return text;
}

void line(const std::string& name, const std::string& text) {
  std::cout << name << std::string(name.size() < 10 ? 10 - name.size() : 1, ' ') << shown(text)
            << '\n';
}

void print_job(const Job& job) {
  line("state", Job::State_Name(job.state()) +
                    (job.state_reason().empty() ? "" : ": " + job.state_reason()));
  line("run", job.run_id() + ", " + std::to_string(job.world_size()) +
                  (job.world_size() == 1 ? " rank" : " ranks") + " over " + job.backend() +
                  ", fusedbun " + job.version());
  std::string step = std::to_string(job.step());
  if (job.total_steps() > 0) step += " of " + std::to_string(job.total_steps());
  if (job.has_last_step_time()) step += ", the last ended " + age_of(job.last_step_time());
  if (job.skipped_steps() > 0) step += ", " + std::to_string(job.skipped_steps()) + " skipped";
  line("step", step);
  if (!job.last_checkpoint().empty()) line("saved", job.last_checkpoint());
  if (!job.last_checkpoint_error().empty())
    line("not saved", "the newest checkpoint: " + job.last_checkpoint_error());
}

/// Four digits: a schedule's value has no shorter exact text. --output json has all of them.
std::string brief(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

std::string learning_rate_text(const control::v1::ParamGroup& group, double scale) {
  std::string text = "lr " + brief(group.effective_learning_rate());
  if (group.values().has_learning_rate()) {
    return text + " (pinned; schedule " + brief(group.scheduled_learning_rate()) + ")";
  }
  return text + " (schedule " + brief(group.scheduled_learning_rate()) + " x scale " +
         text_of(scale) + ")";
}

/// ", eps 1e-08, ..., use_rms": in the optimizer's words; of switches those that are on.
std::string values_text(const control::v1::HyperparameterValues& values) {
  const auto* const reflection = values.GetReflection();
  std::string text;
  for (const changes::FieldSpec& spec : changes::field_specs()) {
    if (spec.get == nullptr || spec.field == changes::Field::learning_rate) continue;
    const auto* const field =
        values.GetDescriptor()->FindFieldByNumber(static_cast<int>(spec.field));
    const std::string name(spec.option_name);
    if (!spec.is_bool) {
      text += ", " + name + " " + text_of(reflection->GetDouble(values, field));
    } else if (reflection->GetBool(values, field)) {
      text += ", " + name;
    }
  }
  return text;
}

void print_hyperparameters(const Hyperparameters& all, int64_t revision_in_use) {
  line("changes", "newest " + std::to_string(all.revision()) + ", in use " +
                      std::to_string(revision_in_use) + "; values from step " +
                      std::to_string(all.effective_step()) + " on:");
  for (const auto& group : all.groups()) {
    const auto& values = group.values();
    line(group.name(),
         learning_rate_text(group, all.job_values().lr_scale()) + values_text(values));
  }
  const double norm = all.job_values().max_grad_norm();
  line("clipping", norm > 0 ? "max_grad_norm " + text_of(norm) : "off");
}

/// In the contract's words, so that programs find the state where a running job has it.
nlohmann::ordered_json job_json(const run_folder::Attempt& attempt) {
  const FinalState final = final_state(attempt);
  return {
      {"state", Job::State_Name(final.state)}, {"state_reason", final.reason},
      {"step", std::to_string(attempt.steps)}, {"total_steps", std::to_string(attempt.total_steps)},
      {"world_size", attempt.world_size},      {"run_id", attempt.run_id}};
}

void print_ended(const run_folder::Attempt& attempt, OutputFormat format) {
  if (format == OutputFormat::json) {
    const nlohmann::ordered_json json = {
        {"job", job_json(attempt)},
        {"run", nlohmann::ordered_json::parse(run_folder::json_of(attempt))}};
    std::cout << json.dump(2) << '\n';
    return;
  }
  line("state", name_of(attempt.state) + (attempt.reason.empty() ? "" : ": " + attempt.reason));
  line("ended", (attempt.ended.empty() ? "unknown" : attempt.ended) +
                    (attempt.exit_code ? ", exit code " + std::to_string(*attempt.exit_code) : "") +
                    "; started " + attempt.started);
  line("step", std::to_string(attempt.steps) + " of " + std::to_string(attempt.total_steps));
  line("ranks", std::to_string(attempt.world_size) + ", rank 0 was pid " +
                    std::to_string(attempt.place.pid) + " on " + attempt.place.host);
  line("model", attempt.model.empty() ? "not saved, as told" : attempt.model);
}

void print_live(const control::JobLocation& location, OutputFormat format) {
  control::ControlClient client(location);
  const Job job = client.job();
  const Hyperparameters hyperparameters = client.hyperparameters();
  if (format == OutputFormat::json) {
    const nlohmann::ordered_json json = {
        {"job", nlohmann::ordered_json::parse(json_of(job))},
        {"hyperparameters", nlohmann::ordered_json::parse(json_of(hyperparameters))}};
    std::cout << json.dump(2) << '\n';
    return;
  }
  print_job(job);
  print_hyperparameters(hyperparameters, job.config_revision());
}

void print_status(const control::JobLocation& location, OutputFormat format) {
  ask_job_or_record(
      location, [&] { print_live(location, format); },
      [&](const run_folder::Attempt& attempt) { print_ended(attempt, format); });
}

}  // namespace

CLI::App* add_status_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "status",
      "Say what a running job does, and with which hyperparameters; of one that has ended, how");
  command->footer(
      "Examples:\n"
      "  fusedbun status --run-dir runs/first\n"
      "  fusedbun status --run-dir runs/first --output json | jq .job.state");
  const auto location = add_job_flags(*command);
  const auto format = add_output_flag(*command);
  command->callback([location, format] { print_status(*location, *format); });
  return command;
}

}  // namespace fusedbun::launcher

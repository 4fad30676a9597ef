#include "fusedbun/dist/run_folder/run_record.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/error_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::run_folder {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "fusedbun.run";
constexpr int kVersion = 1;
constexpr std::array kStates = {"RUNNING", "SUCCEEDED", "DRAINED", "STOPPED", "FAILED"};

RunState state_of(const std::string& name) {
  const auto found = std::ranges::find(kStates, name);
  FUSEDBUN_REQUIRE(found != kStates.end(), DataError, "unknown state '" + name + "'");
  return static_cast<RunState>(found - kStates.begin());
}

Json json_of(const NamedTexts& texts) {
  Json json = Json::object();
  for (const auto& [name, text] : texts) json[name] = text;
  return json;
}

NamedTexts texts_of(const Json& json) {
  NamedTexts texts;
  for (const auto& [name, text] : json.items()) texts.emplace_back(name, text);
  return texts;
}

Json json_of(const std::optional<FlagValues>& config) {
  if (!config) return {};
  Json json = Json::object();
  for (const auto& [flag, values] : *config) json[flag] = values;
  return json;
}

Json to_json(const Attempt& attempt) {
  return {{"state", name_of(attempt.state)},
          {"exit_code", attempt.exit_code ? Json(*attempt.exit_code) : Json()},
          {"reason", attempt.reason},
          {"steps", attempt.steps},
          {"total_steps", attempt.total_steps},
          {"seed", attempt.seed},
          {"world_size", attempt.world_size},
          {"run_id", attempt.run_id},
          {"host", attempt.place.host},
          {"pid", attempt.place.pid},
          {"boot_id", attempt.place.boot_id},
          {"pid_namespace", attempt.place.pid_namespace},
          {"started", attempt.started},
          {"ended", attempt.ended.empty() ? Json() : Json(attempt.ended)},
          {"model", attempt.model},
          {"model_step", attempt.model_step ? Json(*attempt.model_step) : Json()},
          {"optimizer", attempt.optimizer},
          {"command", attempt.command},
          {"flags", json_of(attempt.flags)},
          {"config", json_of(attempt.config)},
          {"versions", json_of(attempt.versions)}};
}

Attempt from_json(const Json& json) {
  Attempt attempt;
  attempt.state = state_of(json.at("state"));
  if (!json.at("exit_code").is_null()) attempt.exit_code = json.at("exit_code").get<int>();
  attempt.reason = json.at("reason");
  attempt.steps = json.at("steps");
  attempt.total_steps = json.at("total_steps");
  attempt.seed = json.at("seed");
  attempt.world_size = json.at("world_size");
  attempt.run_id = json.at("run_id");
  attempt.place.host = json.at("host");
  attempt.place.pid = json.at("pid");
  attempt.place.boot_id = json.value("boot_id", "");  // earlier versions did not note them
  attempt.place.pid_namespace = json.value("pid_namespace", "");
  attempt.started = json.at("started");
  if (!json.at("ended").is_null()) attempt.ended = json.at("ended");
  attempt.model = json.at("model");
  if (const auto step = json.find("model_step"); step != json.end() && !step->is_null())
    attempt.model_step = step->get<int64_t>();
  attempt.optimizer = json.at("optimizer");
  attempt.command = json.at("command").get<std::vector<std::string>>();
  attempt.flags = texts_of(json.at("flags"));
  if (const auto config = json.find("config"); config != json.end() && !config->is_null()) {
    attempt.config.emplace();
    for (const auto& [flag, values] : config->items())
      attempt.config->emplace_back(flag, values.get<std::vector<std::string>>());
  }
  attempt.versions = texts_of(json.at("versions"));
  return attempt;
}

std::string text_of(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// Everything of the earlier run but its model: that goes when there is another.
void remove_earlier_run(const fs::path& run_dir) {
  std::error_code ignored;
  for (const char* name :
       {kRecordName, kMetricsName, kLogName, kPlanName, kChangesName, kBestModelName})
    fs::remove(run_dir / name, ignored);
  for (const fs::directory_entry& entry : fs::directory_iterator(run_dir, ignored)) {
    if (entry.path().filename().string().starts_with(kEventsPrefix))
      fs::remove(entry.path(), ignored);
  }
  fs::remove_all(run_dir / kCheckpointsName, ignored);
  remove_error_files(run_dir);
}

void mark_ended(Attempt& attempt, RunState state, int exit_code, std::string reason) {
  attempt.state = state;
  attempt.exit_code = exit_code;
  attempt.reason = std::move(reason);
  attempt.ended = utc_text(std::time(nullptr));
}

void write_record(const std::filesystem::path& run_dir, const std::vector<Attempt>& attempts) {
  Json array = Json::array();
  for (const Attempt& attempt : attempts) array.push_back(to_json(attempt));
  AtomicFile file(run_dir / kRecordName);
  file.write(text_of({{"format", kFormat}, {"version", kVersion}, {"attempts", array}}));
  file.commit();
}

}  // namespace

std::string name_of(RunState state) {
  return kStates.at(static_cast<size_t>(state));
}

std::string json_of(const Attempt& attempt) {
  return text_of(to_json(attempt));
}

std::vector<Attempt> read_run_record(const fs::path& run_dir) {
  return read_run_record_file(run_dir / kRecordName);
}

std::vector<Attempt> read_run_record_file(const fs::path& path) {
  std::ifstream stream(path);
  if (!stream.good()) return {};
  try {
    const Json json = Json::parse(stream);
    FUSEDBUN_REQUIRE(json.at("format") == kFormat && json.at("version") == kVersion, DataError,
                     "it has a format that this version does not know");
    std::vector<Attempt> attempts;
    for (const Json& attempt : json.at("attempts")) attempts.push_back(from_json(attempt));
    return attempts;
  } catch (const nlohmann::json::exception& error) {
    throw DataError(path.string() + " is damaged: " + error.what());
  } catch (const DataError& error) {
    throw DataError(path.string() + " cannot be read: " + error.what());
  }
}

void require_usable(const fs::path& run_dir, Reuse reuse) {
  if (reuse == Reuse::overwrite) return;
  const std::vector<Attempt> attempts = read_run_record(run_dir);
  FUSEDBUN_REQUIRE(attempts.empty() || !attempts.back().finished_for_good(), ConfigError,
                   "the run folder " + run_dir.string() + " holds a finished run (" +
                       name_of(attempts.back().state) + " after " +
                       std::to_string(attempts.back().steps) +
                       " steps): give another --run-dir, or --overwrite to replace that run");
}

RunRecorder::RunRecorder(fs::path run_dir, Attempt attempt, Reuse reuse, Notice notice)
    : run_dir_(std::move(run_dir)), notice_(std::move(notice)), attempt_(std::move(attempt)) {
  require_usable(run_dir_, reuse);
  if (reuse == Reuse::overwrite) remove_earlier_run(run_dir_);
  earlier_ = read_run_record(run_dir_);
  attempt_.place = this_process();
  attempt_.started = utc_text(std::time(nullptr));
  write();
}

void RunRecorder::end(RunState state, int exit_code, std::string reason) {
  mark_ended(attempt_, state, exit_code, std::move(reason));
  write();
}

void RunRecorder::write() noexcept {
  try {
    std::vector<Attempt> attempts = earlier_;
    attempts.push_back(attempt_);
    write_record(run_dir_, attempts);
  } catch (const std::exception& error) {
    notice_(std::string(error.what()) + "; the run goes on without its record");
  }
}

void end_newest_attempt(const std::filesystem::path& run_dir, RunState state, int exit_code,
                        const std::string& reason, int64_t steps) noexcept {
  try {
    std::vector<Attempt> attempts = read_run_record(run_dir);
    if (attempts.empty()) return;
    Attempt& newest = attempts.back();
    mark_ended(newest, state, exit_code, reason);
    newest.steps = steps;
    newest.model.clear();
    write_record(run_dir, attempts);
  } catch (const std::exception&) {  // its readers see that the process is gone
  }
}

}  // namespace fusedbun::run_folder

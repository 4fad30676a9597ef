#include "fusedbun/launcher/runs/found_runs.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/file_names.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;

/// The end of metrics.jsonl that is read: hundreds of lines.
constexpr std::streamoff kTailBytes = 64 << 10;

std::string tail_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  file.seekg(0, std::ios::end);
  const std::streamoff size = file.tellg();
  if (!file.good() || size <= 0) return {};
  const std::streamoff begin = std::max<std::streamoff>(0, size - kTailBytes);
  std::string text(static_cast<size_t>(size - begin), '\0');
  file.seekg(begin);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  // A first line that was cut, and a last one that is being written.
  if (begin > 0) text.erase(0, std::min(text.find('\n') + 1, text.size()));
  text.resize(text.rfind('\n') + 1);
  return text;
}

void read_metrics(FoundRun& run) {
  const std::string text = tail_of(run.folder / run_folder::kMetricsName);
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = text.find('\n', at);
    const auto line = nlohmann::json::parse(text.substr(at, end - at), nullptr, false);
    at = end + 1;
    if (!line.is_object()) continue;
    const auto number = [&](const char* name) -> std::optional<double> {
      const auto found = line.find(name);
      if (found == line.end() || !found->is_number()) return std::nullopt;
      return found->get<double>();
    };
    if (const auto loss = number("loss")) {
      run.loss = loss;
      if (const auto step = number("step"))
        run.steps = std::max(run.steps, static_cast<int64_t>(*step) + 1);
    }
    if (const auto loss = number("validation_loss")) run.validation_loss = loss;
  }
}

std::string state_of(const run_folder::Attempt& attempt) {
  if (attempt.state != run_folder::RunState::running) return name_of(attempt.state);
  if (run_folder::is_surely_gone(attempt.place)) return "KILLED";
  return run_folder::shares_processes(attempt.place) ? "RUNNING" : "RUNNING?";
}

int64_t seconds_since(const fs::path& file) {
  std::error_code error;
  const auto written = fs::last_write_time(file, error);
  if (error) return 0;
  return std::chrono::duration_cast<std::chrono::seconds>(fs::file_time_type::clock::now() -
                                                          written)
      .count();
}

FoundRun read_run(const fs::path& folder, std::vector<run_folder::Attempt> attempts) {
  FoundRun run{.folder = folder, .attempt = std::move(attempts.back()), .state = {}};
  run.attempts = static_cast<int>(attempts.size());
  run.state = state_of(run.attempt);
  run.steps = run.attempt.steps;
  read_metrics(run);
  const bool is_open = run.attempt.state == run_folder::RunState::running;
  run.seconds_since =
      seconds_since(folder / (is_open ? run_folder::kMetricsName : run_folder::kRecordName));
  return run;
}

void look_into(const fs::path& folder, RunsFound& found) {
  std::error_code error;
  if (fs::exists(folder / run_folder::kRecordName, error)) {
    try {
      auto attempts = run_folder::read_run_record(folder);
      if (!attempts.empty()) found.runs.push_back(read_run(folder, std::move(attempts)));
    } catch (const Error& damaged) {
      found.problems.emplace_back(damaged.what());
    }
    return;
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (entry.is_directory(error) && !entry.is_symlink(error)) look_into(entry.path(), found);
  if (error)
    found.problems.push_back("cannot look into " + folder.string() + ": " + error.message());
}

bool is_live(const FoundRun& run) {
  return run.state.starts_with("RUNNING");
}

}  // namespace

RunsFound find_runs(const std::vector<fs::path>& folders) {
  RunsFound found;
  for (const fs::path& folder : folders) {
    std::error_code error;
    FUSEDBUN_REQUIRE(fs::is_directory(folder, error), DataError,
                     folder.string() + " is no folder: give one that holds runs");
    look_into(folder, found);
  }
  std::ranges::sort(found.runs, [](const FoundRun& a, const FoundRun& b) {
    if (is_live(a) != is_live(b)) return is_live(a);
    return std::pair(a.seconds_since, a.folder) < std::pair(b.seconds_since, b.folder);
  });
  return found;
}

}  // namespace fusedbun::launcher

#include "fusedbun/launcher/control/ended_run.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/file_names.h"

namespace fusedbun::launcher {
namespace {

using run_folder::Attempt;
using run_folder::RunState;

/// Steps done, from the last whole line of metrics.jsonl that tells of one: a process that is killed writes nothing else.
int64_t steps_in_metrics(const std::filesystem::path& run_dir) {
  std::ifstream file(run_dir / run_folder::kMetricsName);
  int64_t steps = 0;
  for (std::string line; std::getline(file, line) && !file.eof();) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.contains("loss")) steps = json.value("step", int64_t{-1}) + 1;
  }
  return steps;
}

}  // namespace

std::optional<Attempt> newest_ended(const control::JobLocation& location) {
  if (!location.address.empty()) return {};
  std::vector<Attempt> attempts = run_folder::read_run_record(location.run_dir);
  if (attempts.empty()) return {};
  Attempt newest = std::move(attempts.back());
  if (newest.state != RunState::running) return newest;
  if (!run_folder::is_surely_gone(newest.place)) return {};
  newest.state = RunState::failed;
  newest.steps = steps_in_metrics(location.run_dir);
  newest.reason = "its process, pid " + std::to_string(newest.place.pid) +
                  ", is gone and did not say why: it was killed, or left at a second signal";
  return newest;
}

FinalState final_state(const Attempt& attempt) {
  using control::v1::Job;
  switch (attempt.state) {
    case RunState::running:
      return {Job::RUNNING, attempt.reason};
    case RunState::succeeded:
      return {Job::SUCCEEDED, attempt.reason};
    case RunState::drained:
      return {Job::STOPPED, attempt.reason.empty() ? "drained" : attempt.reason};
    case RunState::stopped:
      return {Job::STOPPED, attempt.reason};
    case RunState::failed:
      return {Job::FAILED, attempt.reason};
  }
  FUSEDBUN_ASSERT(false, "every state of a run is one of the contract");
}

void ask_job_or_record(const control::JobLocation& location, const std::function<void()>& live,
                       const std::function<void(const Attempt&)>& ended) {
  try {
    live();
  } catch (const UnavailableError&) {
    const std::optional<Attempt> attempt = newest_ended(location);
    if (!attempt) throw;
    ended(*attempt);
  }
}

}  // namespace fusedbun::launcher

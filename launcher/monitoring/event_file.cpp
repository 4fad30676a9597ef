#include "fusedbun/launcher/monitoring/event_file.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/launcher/monitoring/unix_time.h"

namespace fusedbun::monitoring {
namespace {

/// Readers take the files of a folder in the order of their names.
std::string name_of_new_file() {
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%010lld", static_cast<long long>(unix_time()));
  return std::string(run_folder::kEventsPrefix) + seconds + "." + host_name() + "." +
         std::to_string(::getpid()) + ".0";
}

}  // namespace

EventFile::EventFile(const std::filesystem::path& run_dir, int64_t first_step,
                     const std::vector<HyperParameter>& parameters,
                     run_folder::AppendFile::Notice notice)
    : file_(run_dir / name_of_new_file(), "records", std::move(notice)) {
  const EventTime at{.unix_time = unix_time(), .step = first_step};
  file_.append(version_record(at.unix_time) + start_record(at) +
               hyper_parameters_record(at, parameters));
}

void EventFile::step_done(const StepMetrics& metrics) {
  const EventTime at{.unix_time = unix_time(), .step = metrics.step};
  std::vector<Scalar> scalars = {{"train/loss", metrics.loss},
                                 {"train/tokens_per_second", metrics.tokens_per_second},
                                 {"train/step_seconds", metrics.seconds}};
  if (metrics.grad_norm > 0) scalars.push_back({"train/grad_norm", metrics.grad_norm});
  if (metrics.loss_scale) scalars.push_back({"train/loss_scale", metrics.loss_scale->used});
  if (metrics.skipped > 0)
    scalars.push_back({"train/skipped_steps", static_cast<double>(metrics.skipped)});
  bool is_one_rate = true;
  for (const GroupRate& rate : metrics.group_rates) is_one_rate &= rate.lr == metrics.lr;
  scalars.push_back({"train/learning_rate", metrics.lr});
  for (const GroupRate& rate : metrics.group_rates) {
    if (!is_one_rate) scalars.push_back({"train/learning_rate/" + rate.group, rate.lr});
  }
  std::string records = scalars_record(at, scalars);
  for (const std::string& change : metrics.changes) records += text_record(at, "changes", change);
  file_.append(records);
}

void EventFile::validated(int64_t step, double loss) {
  file_.append(
      scalars_record({.unix_time = unix_time(), .step = step}, {{"validation/loss", loss}}));
}

}  // namespace fusedbun::monitoring

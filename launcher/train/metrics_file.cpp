#include "fusedbun/launcher/train/metrics_file.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace fusedbun::train {

using nlohmann::ordered_json;

MetricsFile::MetricsFile(std::filesystem::path path, int64_t attempt,
                         run_folder::LineFile::Notice notice)
    : lines_(std::move(path), std::move(notice)), attempt_(attempt) {}

void MetricsFile::step_done(const monitoring::StepMetrics& metrics) {
  steps_ = metrics.step + 1;
  ordered_json line{{"attempt", attempt_},
                    {"step", metrics.step},
                    {"loss", metrics.loss},
                    {"lr", metrics.lr},
                    {"tokens_per_second", metrics.tokens_per_second},
                    {"grad_norm", metrics.grad_norm},
                    {"revision", metrics.revision},
                    {"skipped", metrics.skipped}};
  if (metrics.loss_scale) {
    line["loss_scale"] = metrics.loss_scale->used;
    line["good_steps"] = metrics.loss_scale->good_steps;
  }
  lines_.append(line.dump());
}

void MetricsFile::validated(int64_t step, double loss) {
  lines_.append(
      ordered_json{{"attempt", attempt_}, {"step", step}, {"validation_loss", loss}}.dump());
}

std::string MetricsFile::description() const {
  const std::string path = lines_.path().string();
  return lines_.lost() == 0 ? path
                            : path + " (" + std::to_string(lines_.lost()) +
                                  " lines were lost: they could not be written)";
}

}  // namespace fusedbun::train

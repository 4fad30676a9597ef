#include "fusedbun/launcher/train/metrics_file.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::train {

using nlohmann::ordered_json;

MetricsFile::MetricsFile(std::filesystem::path path)
    : path_(std::move(path)), out_(path_, std::ios::app) {
  FUSEDBUN_REQUIRE(out_.good(), IoError, "cannot write " + path_.string());
}

void MetricsFile::write(const StepMetrics& metrics) {
  put(ordered_json{{"step", metrics.step},
                   {"loss", metrics.loss},
                   {"lr", metrics.lr},
                   {"tokens_per_second", metrics.tokens_per_second},
                   {"grad_norm", metrics.grad_norm},
                   {"revision", metrics.revision},
                   {"skipped", metrics.skipped}}
          .dump());
}

void MetricsFile::write_validation(int64_t step, double loss) {
  put(ordered_json{{"step", step}, {"validation_loss", loss}}.dump());
}

void MetricsFile::put(const std::string& line) {
  out_ << line << std::endl;
  FUSEDBUN_REQUIRE(out_.good(), IoError, "cannot write " + path_.string() + ": is the disk full?");
}

}  // namespace fusedbun::train

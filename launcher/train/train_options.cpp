#include "fusedbun/launcher/train/train_options.h"

#include <cmath>
#include <limits>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

void require_at_least(const char* flag, int64_t value, int64_t least) {
  FUSEDBUN_REQUIRE(value >= least, ConfigError,
                   std::string(flag) + " = " + std::to_string(value) + ": must be at least " +
                       std::to_string(least));
}

void require_port(const char* flag, int port) {
  FUSEDBUN_REQUIRE(
      port >= 0 && port <= 65535, ConfigError,
      std::string(flag) + " = " + std::to_string(port) + ": from 1 to 65535, or 0 for a free one");
}

// What the formats need of the optimizer.
void validate_precision(const TrainOptions& options) {
  const std::string flag = "--precision " + std::string(name_of(options.precision));
  const bool sharded = options.optimizer.kind == OptimizerKind::fusedbun;
  FUSEDBUN_REQUIRE(options.precision != Precision::bf16 || sharded, ConfigError,
                   flag +
                       " needs float32 masters, which --optimizer adamw has not: take "
                       "--precision bf16-autocast or --optimizer fusedbun");
  FUSEDBUN_REQUIRE(
      options.precision == Precision::bf16 || !options.optimizer.low_precision, ConfigError,
      "--low-precision is for bfloat16 parameters: add --precision bf16, or leave it out");
  FUSEDBUN_REQUIRE(sharded || !options.clip_by_previous_norm, ConfigError,
                   "--clip-by-previous-norm is for --step-in-backward, which --optimizer adamw has "
                   "not: leave it out, or take --optimizer fusedbun");
  if (!scales_loss(options.precision)) return;
  FUSEDBUN_REQUIRE(std::isfinite(options.loss_scale.initial) &&
                       options.loss_scale.initial >= options.loss_scale.minimum &&
                       options.loss_scale.initial <= std::numeric_limits<float>::max(),
                   ConfigError,
                   "--loss-scale = " + std::to_string(options.loss_scale.initial) +
                       ": must be at least 1 and a float32");
  require_at_least("--loss-scale-growth-every", options.loss_scale.growth_interval, 1);
  FUSEDBUN_REQUIRE(sharded, ConfigError,
                   flag +
                       " needs an optimizer that skips steps whose gradients overflow, and "
                       "--optimizer adamw does not: take --precision bf16-autocast or "
                       "--optimizer fusedbun");
  FUSEDBUN_REQUIRE(!options.step_in_backward, ConfigError,
                   flag +
                       ": --step-in-backward writes before it is known whether a gradient "
                       "overflowed: give one of them, or take --precision bf16-autocast");
  FUSEDBUN_REQUIRE(!options.optimizer.propagate_nonfinite, ConfigError,
                   flag +
                       ": its scale is found by skipping steps that overflow, and "
                       "--propagate-nonfinite skips none: leave it out, or take --precision "
                       "bf16-autocast");
}

// Where Prometheus asks.
void validate_metrics(const TrainOptions& options) {
  FUSEDBUN_REQUIRE(options.metrics_port || options.metrics_address.empty(), ConfigError,
                   "--metrics-address says where metrics are served, and without --metrics-port "
                   "none are: give both, as --metrics-port 9400 --metrics-address 0.0.0.0");
  if (!options.metrics_port) return;
  require_port("--metrics-port", *options.metrics_port);
  monitoring::require_metrics_endpoint();
  monitoring::text_of(listen_options(options));
}

}  // namespace

monitoring::ListenOptions listen_options(const TrainOptions& options) {
  monitoring::ListenOptions listen{.port = options.metrics_port.value_or(0)};
  if (!options.metrics_address.empty()) listen.address = options.metrics_address;
  return listen;
}

void validate(const TrainOptions& options) {
  validate(options.length);
  validate(options.schedule);
  validate(options.early_stopping, options.eval_every);
  FUSEDBUN_REQUIRE(options.init.empty() || options.model_config.empty(), ConfigError,
                   "--init has weights and a config.json of its own, and --model-config is for a "
                   "model from scratch (" +
                       options.model_config.string() + "): give one of them");
  require_at_least("--batch", options.batch, 1);
  require_at_least("--accumulate", options.accumulation, 1);
  require_at_least("--eval-every", options.eval_every, 0);
  require_at_least("--validation-batches", options.validation_batches, 1);
  require_at_least("--threads", options.threads, 0);
  if (options.document_token) require_at_least("--document-token", *options.document_token, 0);
  if (options.model.context) require_at_least("--context", *options.model.context, 1);
  const double dropout = options.model.dropout.value_or(0);
  FUSEDBUN_REQUIRE(
      dropout >= 0 && dropout < 1, ConfigError,
      "--dropout = " + std::to_string(dropout) + ": it is a probability, at least 0 and below 1");
  FUSEDBUN_REQUIRE(
      std::isfinite(options.max_grad_norm) && options.max_grad_norm >= 0, ConfigError,
      "--clip = " + std::to_string(options.max_grad_norm) + ": must be finite, >= 0 (0: off)");
  FUSEDBUN_REQUIRE(std::isfinite(options.control_rate) && options.control_rate >= 0, ConfigError,
                   "--control-rate = " + std::to_string(options.control_rate) +
                       ": must be finite, >= 0 (0: any number)");
  FUSEDBUN_REQUIRE(options.changes.empty() || options.optimizer.kind == OptimizerKind::fusedbun,
                   ConfigError, "--changes: only --optimizer fusedbun takes changes");
  FUSEDBUN_REQUIRE(
      options.bucket_mebibytes > 0 && options.bucket_mebibytes <= 4096, ConfigError,
      "--bucket-mib = " + std::to_string(options.bucket_mebibytes) + ": above 0, at most 4096");
  FUSEDBUN_REQUIRE(options.timeout.count() > 0, ConfigError, "--timeout: must be above 0 seconds");
  require_at_least("--keep", options.keep_checkpoints, 0);
  FUSEDBUN_REQUIRE(!options.overwrite || !options.resume, ConfigError,
                   "--overwrite starts anew and --resume goes on: give one of them");
  FUSEDBUN_REQUIRE(options.optimizer.kind == OptimizerKind::fusedbun || !options.resume,
                   ConfigError, "--resume: only --optimizer fusedbun has checkpoints");
  FUSEDBUN_REQUIRE(!options.share_gpu || options.use_gpu, ConfigError,
                   "--share-gpu: the ranks are on CPUs: add --device cuda");
  if (options.health_port) require_port("--health-port", *options.health_port);
  plan::validate(options.health);
  validate_metrics(options);
  validate_precision(options);
  options_of(options.optimizer);
}

}  // namespace fusedbun::train

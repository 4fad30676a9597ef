#pragma once
// What a person asked `fusedbun train` for. No LibTorch, so that the command line can be parsed without it.
//
// Thread safety: values.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/core/loss_scale.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"
#include "fusedbun/dist/plan/rank_watch.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/launcher/data/corpus.h"
#include "fusedbun/launcher/monitoring/metrics_endpoint.h"
#include "fusedbun/launcher/train/checkpoint_schedule.h"
#include "fusedbun/launcher/train/early_stopping.h"
#include "fusedbun/launcher/train/optimizer_choice.h"
#include "fusedbun/launcher/train/precision.h"
#include "fusedbun/launcher/train/run_length.h"
#include "fusedbun/launcher/train/schedule.h"

namespace fusedbun::train {

/// Sizes of the model; unset ones come from --init, else from Gpt2Config's defaults.
struct ModelChoice {
  std::optional<int64_t> layers, heads, width, context;
  std::optional<double> dropout;  ///< everywhere where the architecture has it
};

struct TrainOptions {
  std::vector<std::filesystem::path> data;
  std::vector<std::filesystem::path> eval_data;  ///< empty: the last tenth of `data` validates
  data::Packing packing = data::Packing::automatic;
  data::LongDocuments long_documents = data::LongDocuments::refuse;
  std::optional<int64_t> document_token;  ///< parts documents; none: config.json's eos_token_id
  bool attends_across_documents = false;
  std::filesystem::path init;          ///< empty: weights drawn from the seed
  std::filesystem::path model_config;  ///< of a model from scratch; empty: sizes alone
  std::filesystem::path save;          ///< empty: model.safetensors in the run folder
  std::filesystem::path trace;         ///< empty: no trace is written
  std::filesystem::path run_dir;       ///< empty: runs/<date-time>-<pid>
  ModelChoice model;
  OptimizerChoice optimizer;
  RunLength length;
  int64_t batch = 16;    ///< sequences per job step, all ranks together
  int accumulation = 1;  ///< backward passes per job step
  ScheduleChoice schedule;
  EarlyStopping early_stopping;
  bool keep_best = false;           ///< the model that is left is that of the best validation
  std::vector<std::string> freeze;  ///< patterns of parameters that are not trained
  double max_grad_norm = 1;         ///< 0: no clipping
  uint64_t seed = 1;
  int64_t eval_every =
      50;  ///< job steps between validations; 0: only before the first and after the last
  int64_t validation_batches = 8;  ///< of `batch` sequences, at most
  int threads = 0;                 ///< 0: this host's processors divided by its ranks
  bool use_gpu = false;
  bool share_gpu = false;  ///< several ranks may be on one GPU
  Precision precision = Precision::float32;
  LossScaleRules loss_scale;             ///< of fp16_autocast
  bool checkpoints_activations = false;  ///< blocks are recomputed in backward
  bool host_window = true;               ///< ranks of one host share one replica of the parameters
  double bucket_mebibytes = 25;          ///< gradients that travel together
  bool bf16_on_wire = false;             ///< gradients and updates travel as bfloat16
  bool step_in_backward = false;         ///< buckets are stepped during backward
  bool clip_by_previous_norm = false;    ///< and clipped by the norm of the step before
  bool control = true;
  std::string control_address;                ///< empty: a socket in the run folder
  std::filesystem::path control_credentials;  ///< folder of certificates; empty: plaintext
  bool insecure_control = false;
  double control_rate = 50;         ///< changes per second of one actor; 0: any number
  std::filesystem::path changes;    ///< file of changes of hyperparameters; empty: none
  std::optional<int> metrics_port;  ///< of /metrics for Prometheus, on rank 0's host; 0: a free one
  std::string metrics_address;      ///< an IP address; empty: 127.0.0.1
  std::optional<int>
      health_port;          ///< of gRPC health, on the first rank of each host; 0: a free one
  bool tensorboard = true;  ///< an event file in the run folder
  bool log_json = false;    ///< what a person is told as JSON lines (cli/log_record.h)
  bool quiet = false;
  bool overwrite = false;  ///< a run folder that was used before starts anew
  bool checkpoints = true;
  CheckpointEvery checkpoint_every{.seconds = 600};
  int keep_checkpoints = 3;  ///< 0: all
  bool resume = false;       ///< said so; a run folder with a checkpoint is resumed anyway
  std::string
      resume_from;  ///< a step, a checkpoint, or a run folder; empty: the newest of this one
  bool load_partial = false;  ///< of a checkpoint that does not fit, what fits
  bool fallback = false;      ///< where the newest is damaged, an older one
  /// For the run's record: the words of the command, every flag with its value, versions of the libraries.
  std::vector<std::string> command;
  run_folder::NamedTexts flags, versions;
  run_folder::FlagValues settings;  ///< of `flags`, those that were set
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  plan::IdentityFlags identity;
  std::chrono::milliseconds timeout{60'000};
  plan::HealthLimits health;
};

/// Where --metrics-port is.
monitoring::ListenOptions listen_options(const TrainOptions& options);

/// Throws ConfigError "--flag = value: allowed range" for the first value that cannot be.
void validate(const TrainOptions& options);

}  // namespace fusedbun::train

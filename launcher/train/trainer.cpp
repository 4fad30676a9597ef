#include "fusedbun/launcher/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <ctime>
#include <iostream>
#include <memory>
#include <optional>
#include <span>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/checkpoint/checkpoint_folder.h"
#include "fusedbun/dist/checkpoint/digest.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/dist/run_folder/atomic_file.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/cli/log_record.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/env/versions.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/monitoring/event_file.h"
#include "fusedbun/launcher/monitoring/metrics_endpoint.h"
#include "fusedbun/launcher/train/across_ranks.h"
#include "fusedbun/launcher/train/best_model.h"
#include "fusedbun/launcher/train/frozen_parameters.h"
#include "fusedbun/launcher/train/health_probe.h"
#include "fusedbun/launcher/train/initial_model.h"
#include "fusedbun/launcher/train/last_words.h"
#include "fusedbun/launcher/train/leave_signals.h"
#include "fusedbun/launcher/train/memory_forecast.h"
#include "fusedbun/launcher/train/memory_use.h"
#include "fusedbun/launcher/train/metrics_file.h"
#include "fusedbun/launcher/train/model_file.h"
#include "fusedbun/launcher/train/model_folder.h"
#include "fusedbun/launcher/train/run_checkpoints.h"
#include "fusedbun/launcher/train/run_report.h"
#include "fusedbun/launcher/train/run_values.h"
#include "fusedbun/launcher/train/trace_file.h"
#include "fusedbun/launcher/train/training_loop.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;

/// Where the launcher will start the ranks again the folder has the run's name, so that each attempt finds what the one before left.
fs::path run_folder_of(const TrainOptions& options, const plan::Identity& identity) {
  if (!options.run_dir.empty()) return options.run_dir;
  const char* const restarts = std::getenv("TORCHELASTIC_MAX_RESTARTS");
  const bool has_name =
      !identity.run_id.empty() && identity.run_id != "none";  // torchrun's default
  if (restarts != nullptr && std::string_view(restarts) != "0" && has_name) {
    return fs::path("runs") / identity.run_id;
  }
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d-%H%M%S-", ::localtime_r(&now, &parts));
  return fs::path("runs") / (text + std::to_string(::getpid()));
}

void set_threads(int asked, int local_ranks) {
  if (asked > 0) {
    at::set_num_threads(asked);
  } else if (std::getenv("OMP_NUM_THREADS") ==
             nullptr) {  // launchers set it, and LibTorch has read it
    at::set_num_threads(std::max(1, launcher::usable_cores() / local_ranks));
  }
}

/// Of what computes, except for dropout.
int64_t digest_of(model::ModelConfig config) {
  model::set_dropout(config, 0);
  const std::string text = model::hf_config_text(config, "");
  return static_cast<int64_t>(checkpoint::digest_of(std::as_bytes(std::span(text))).high);
}

int64_t bits_of(double value) {
  return std::bit_cast<int64_t>(value);
}

/// What the length of a run is counted in.
SampleCounts sample_counts(const TrainOptions& options, const data::Corpus& corpus,
                           int64_t context) {
  return {.batch = options.batch, .context = context, .samples = corpus.training_samples()};
}

void require_same_run(comm::Communicator& host, const TrainOptions& options,
                      const Schedule& schedule, const data::Corpus& corpus, int64_t context,
                      const model::ModelConfig& config) {
  const model::DropoutRates dropout = model::dropout_of(config);
  require_same_start(host, {{"--steps", schedule.total_steps},
                            {"--warmup", schedule.warmup_steps},
                            {"--schedule", static_cast<int64_t>(schedule.kind)},
                            {"--min-lr", bits_of(schedule.floor_fraction)},
                            {"--decay", schedule.decay_steps},
                            {"--early-stop", options.early_stopping.patience},
                            {"--early-stop-delta", bits_of(options.early_stopping.min_delta)},
                            {"--batch", options.batch},
                            {"--accumulate", options.accumulation},
                            {"--context", context},
                            {"--seed", static_cast<int64_t>(options.seed)},
                            {"--dropout of embeddings", bits_of(dropout.embeddings)},
                            {"--dropout of attention", bits_of(dropout.attention)},
                            {"--dropout of residuals", bits_of(dropout.residuals)},
                            {"--eval-every", options.eval_every},
                            {"--validation-batches", options.validation_batches},
                            {"--optimizer", static_cast<int64_t>(options.optimizer.kind)},
                            {"--clip", bits_of(options.max_grad_norm)},
                            {"--bucket-mib", bits_of(options.bucket_mebibytes)},
                            {"--bf16-wire", options.bf16_on_wire ? 1 : 0},
                            {"--no-host-window", options.host_window ? 0 : 1},
                            {"--step-in-backward", options.step_in_backward ? 1 : 0},
                            {"--clip-by-previous-norm", options.clip_by_previous_norm ? 1 : 0},
                            {"--precision", static_cast<int64_t>(options.precision)},
                            {"--packing", static_cast<int64_t>(options.packing)},
                            {"--long-documents", static_cast<int64_t>(options.long_documents)},
                            {"--document-token", options.document_token.value_or(-1)},
                            {"--attend-across-documents", options.attends_across_documents ? 1 : 0},
                            {"--loss-scale", bits_of(options.loss_scale.initial)},
                            {"--loss-scale-growth-every", options.loss_scale.growth_interval},
                            {"the text of --data", static_cast<int64_t>(corpus.digest())},
                            {kConfigSays, digest_of(config)}});
}

/// What people compare runs by: these, and whatever else was set.
std::vector<monitoring::HyperParameter> hyper_parameters(const TrainOptions& options,
                                                         const Schedule& schedule, int64_t context,
                                                         int world_size) {
  std::vector<monitoring::HyperParameter> values = {
      {"lr", schedule.peak},
      {"steps", static_cast<double>(schedule.total_steps)},
      {"warmup", static_cast<double>(schedule.warmup_steps)},
      {"schedule", std::string(name_of(schedule.kind))},
      {"batch", static_cast<double>(options.batch)},
      {"context", static_cast<double>(context)},
      {"clip", options.max_grad_norm},
      {"seed", static_cast<double>(options.seed)},
      {"precision", std::string(name_of(options.precision))},
      {"optimizer", describe(options.optimizer)},
      {"ranks", static_cast<double>(world_size)}};
  for (const auto& [flag, texts] : options.settings) {
    std::string text;
    for (const std::string& each : texts) text += (text.empty() ? "" : " ") + each;
    if (std::ranges::find(values, flag, &monitoring::HyperParameter::first) == values.end())
      values.emplace_back(flag, text);
  }
  return values;
}

LoopOptions loop_options(const TrainOptions& options, const Job& job, int64_t context,
                         const Schedule& schedule) {
  LoopOptions loop;
  loop.schedule = schedule;
  loop.early_stopping = options.early_stopping;
  loop.share = share_of_batch(options.batch, options.accumulation, job.rank(), job.world_size());
  loop.validation = {.sequences_max = options.validation_batches * options.batch,
                     .sequences_per_pass = loop.share.micro_sequences};
  loop.context = context;
  loop.seed = options.seed;
  loop.eval_every = options.eval_every;
  loop.loss_scale_minimum = options.loss_scale.minimum;
  return loop;
}

model::ForwardOptions forward_options(const TrainOptions& options) {
  model::ForwardOptions forward{.checkpoints_activations = options.checkpoints_activations};
  if (has_autocast(options.precision))
    forward.autocast = options.precision == Precision::bf16_autocast ? at::kBFloat16 : at::kHalf;
  return forward;
}

/// Where the headers of a model's file fit, beside its parameters.
constexpr int64_t kHeaderBytesMax = 64 << 10;

/// What an exception that ends the process says to a shell.
int exit_code_of(const std::exception& error) {
  const auto* ours = dynamic_cast<const Error*>(&error);
  return static_cast<int>(ours != nullptr ? ours->code() : ExitCode::unclassified);
}

run_folder::RunState state_of(changes::LeaveRequest leave) {
  switch (leave) {
    case changes::LeaveRequest::none:
      return run_folder::RunState::succeeded;
    case changes::LeaveRequest::drain:
      return run_folder::RunState::drained;
    case changes::LeaveRequest::stop:
      return run_folder::RunState::stopped;
  }
  FUSEDBUN_ASSERT(false, "every way to leave is a state of the run");
}

/// A restart goes on with what its first attempt has begun.
run_folder::Reuse reuse_of(const TrainOptions& options, const plan::Identity& identity) {
  return options.overwrite && identity.restart_count == 0 ? run_folder::Reuse::overwrite
                                                          : run_folder::Reuse::refuse_finished;
}

LoadOptions resume_from(const TrainOptions& options) {
  LoadOptions from{.partial = options.load_partial, .fallback = options.fallback};
  from.job_step = checkpoint::read_step(options.resume_from);
  if (!from.job_step) from.path = options.resume_from;
  return from;
}

/// Where a start goes on rather than begins.
bool is_resumed(const TrainOptions& options, const plan::Identity& identity,
                const fs::path& run_dir) {
  if (!options.checkpoints || options.optimizer.kind != OptimizerKind::fusedbun) return false;
  if (reuse_of(options, identity) == run_folder::Reuse::overwrite) return false;
  return options.resume ||
         !checkpoint::CheckpointFolder(run_dir / run_folder::kCheckpointsName).steps().empty();
}

/// Nothing is left to do for a run that has ended for good; says so, on rank 0. Collective.
bool is_finished(Job& job, bool resumed, const fs::path& run_dir, Progress& progress) {
  std::string finished;
  comm::rethrow_on_all_ranks(*job.channels().host, [&] {
    if (job.rank() != 0 || !resumed) return;
    const std::vector<run_folder::Attempt> attempts = run_folder::read_run_record(run_dir);
    if (attempts.empty() || !attempts.back().finished_for_good()) return;
    finished = "the run in " + run_dir.string() + " is " + name_of(attempts.back().state) +
               " after " + std::to_string(attempts.back().steps) +
               " steps, and nothing is left to do; --overwrite starts anew, --init goes on from "
               "its model in another folder";
  });
  finished = comm::broadcast_text(*job.channels().host, finished, 0);
  if (!finished.empty()) progress.say(finished);
  return !finished.empty();
}

void say_saved(Progress& progress, const SavedCheckpoint& saved) {
  char text[96];
  std::snprintf(text, sizeof text, "checkpoint of step %lld is durable: %.1f MB in %.2f s",
                static_cast<long long>(saved.job_step), static_cast<double>(saved.bytes) / 1e6,
                saved.seconds);
  progress.say(text);
}

/// What a run reads.
struct Corpora {
  Corpora(const TrainOptions& options, const data::CorpusOptions& read)
      : training(options.data, read) {
    if (options.eval_data.empty()) return;
    data::CorpusOptions evaluation = read;
    evaluation.split = data::Split::all_validation;
    own_validation.emplace(options.eval_data, evaluation);
  }
  const data::Corpus& validation() const { return own_validation ? *own_validation : training; }

  data::Corpus training;
  std::optional<data::Corpus> own_validation;
};

/// Published models know more positions than most can afford to train with.
constexpr int64_t kUnaskedContextMax = 1024;

int64_t context_of(const TrainOptions& options, const model::ModelConfig& config) {
  return options.model.context.value_or(std::min(model::context_of(config), kUnaskedContextMax));
}

data::CorpusOptions corpus_options(const TrainOptions& options, const InitialModel& initial,
                                   const fs::path& run_dir, Progress& progress) {
  data::CorpusOptions read{
      .context = context_of(options, initial.config),
      .vocab = model::vocab_of(initial.config),
      .seed = options.seed,
      .split = options.eval_data.empty() ? data::Split::tail : data::Split::all_training,
      .packing = options.packing,
      .long_documents = options.long_documents,
      .has_borders = !options.attends_across_documents,
      .separator = options.document_token,
      .spare_folder = run_dir,
      .notice = [&progress](const std::string& sentence) { progress.say(sentence); }};
  if (!read.separator) read.separator = model::end_of_text_in(initial.config_text);
  return read;
}

/// From a connected job to a saved model.
class Run {
 public:
  Run(const TrainOptions& options, const InitialModel& initial, const fs::path& run_dir, Job& job,
      model::CausalLm& model, const Corpora& corpora, const MemoryUse& memory, Progress& progress,
      LastWords& last_words, LeaveSignals& signals, monitoring::MetricsEndpoint* endpoint)
      : options_(options),
        initial_(initial),
        run_dir_(run_dir),
        job_(job),
        model_(model),
        corpora_(corpora),
        memory_(memory),
        progress_(progress),
        last_words_(last_words),
        signals_(signals),
        endpoint_(endpoint),
        resume_{.from = resume_from(options), .loaded = {}} {}

  struct End {
    changes::LeaveRequest leave;
    bool is_saved;      ///< the model; false only if somebody said to leave without it
    std::string again;  ///< the command that goes on, if a checkpoint of its last step is durable
  };
  /// Throws what ended the job, as the job names it.
  End to_its_end() {
    try {
      try {
        return execute();
      } catch (const std::exception& error) {
        job_.fail(error);
      }
    } catch (const std::exception& error) {
      say_what_is_left(error);
      if (metrics_) record_->set_steps(metrics_->steps());
      if (record_) record_->end(run_folder::RunState::failed, exit_code_of(error), error.what());
      throw;
    }
  }

 private:
  End execute() {
    const int64_t context = context_of(options_, initial_.config);
    comm::Communicator& host = *job_.channels().host;
    signals_.keep();  // on all ranks before rank 0 opens the record, which is to say how it ended
    const Options optimizer = options_of(options_.optimizer);
    const SampleCounts counts = sample_counts(options_, corpora_.training, context);
    schedule_ = schedule_of(options_.schedule, optimizer.lr, steps_of(options_.length, counts));
    require_same_run(host, options_, schedule_, corpora_.training, context, initial_.config);
    job_.set_total_steps(schedule_.total_steps);
    LoopOptions loop = loop_options(options_, job_, context, schedule_);
    freeze_parameters(options_.freeze, model_, host);
    model_.set_forward(forward_options(options_));
    if (options_.precision == Precision::bf16) model_.to(at::kBFloat16);
    if (options_.use_gpu) model_.to(job_.placement().device);
    comm::rethrow_on_all_ranks(host, [&] {
      if (job_.rank() == 0) open_files();
    });
    RunValues values =
        values_of(options_, context, schedule_, model_.dropout(), corpora_.training.digest());
    // What shapes do not show must be the same too.
    values[kConfigSays] = std::to_string(digest_of(initial_.config));
    resume_.from.judge = [&](const RunValues& saved, const fs::path& folder) {
      require_same_run_as_before(saved, values, folder);
    };
    const std::unique_ptr<Stepper> stepper = make_stepper(optimizer);
    if (resume_.loaded) {
      loop.first_validation_loss = first_validation_loss_in(resume_.loaded->values);
      if (!is_another_run_) loop.validations = validations_in(resume_.loaded->values);
    }
    const LeaveSignals::Serving asked_by_signals(*stepper);
    const std::vector<int64_t> planned =
        comm::all_gather_object(host, stepper->planned_state_bytes());
    const MemoryForecast forecast =
        forecast_memory(memory_question(*stepper, loop, std::ranges::max(planned)));
    if (job_.rank() == 0) say_start(*stepper, counts, planned, forecast);
    if (job_.rank() == 0 && options_.tensorboard) open_event_file(stepper->job_step(), context);
    if (job_.rank() == 0 && options_.keep_best) open_best_model(loop.validations.best);
    if (options_.checkpoints_activations) {
      launcher::return_freed_memory();  // who asks for it wants memory more than time
    } else {
      launcher::disable_malloc_trim();
    }
    if (keeps_checkpoints()) {
      checkpoints_.emplace(*stepper, job_, options_.checkpoint_every, values, options_.batch,
                           stepper->job_step());
    }
    note_durable();
    if (job_.rank() == 0) last_words_.keep_for_launcher();
    last_words_.steps_done(stepper->job_step());
    LoopResult result =
        TrainingLoop({model_, corpora_.training, corpora_.validation(), *stepper, job_, progress_,
                      observers(), checkpoints_ ? &*checkpoints_ : nullptr,
                      [this](int64_t count) { last_words_.steps_done(count); },
                      [this](const BestValidation& validation) {
                        if (best_model_) best_model_->consider(validation);
                      }},
                     loop)
            .run();
    const std::vector<int64_t> measured = comm::all_gather_object(host, stepper->state_bytes());
    const std::vector<int64_t> memory = comm::all_gather_object(host, memory_.peak());
    std::optional<fs::path> model_path;
    if (job_.rank() == 0) {
      RunEnd end{.result = result,
                 .planned_bytes = planned,
                 .measured_bytes = measured,
                 .forecast_memory = forecast.peak(has_saved_checkpoint()),
                 .memory = memory};
      leave_model(end);
      model_path = end.model;
      if (!model_path) result.leave = changes::LeaveRequest::stop;
    }
    if (!options_.trace.empty()) save_trace(host);
    if (record_) {
      const bool early = result.leave == changes::LeaveRequest::drain || !model_path;
      record_->end(state_of(result.leave),
                   static_cast<int>(early ? ExitCode::left_early : ExitCode::done),
                   why_early(result));
    }
    const bool is_saved = job_.finish(result.leave, job_.rank() != 0 || model_path.has_value());
    const bool is_resumable = durable() == std::optional(result.steps);
    return {result.leave, is_saved, is_resumable ? last_words_.same_command() : ""};
  }

  /// Rank 0. The folder is this job's: its lock is held.
  void open_files() {
    const auto say = [this](const std::string& sentence) { progress_.say(sentence); };
    const ModelPlace place =
        options_.save.empty()
            ? ModelPlace{.weights = run_dir_ / run_folder::kModelName, .is_folder = true}
            : checkpoint::place_of(options_.save);
    companions_ =
        read_companions(initial_, options_.precision == Precision::bf16 ? "bfloat16" : "float32");
    run_folder::Attempt attempt;
    attempt.total_steps = schedule_.total_steps;
    attempt.seed = options_.seed;
    attempt.world_size = job_.world_size();
    attempt.run_id = job_.identity().run_id;
    attempt.model = place.weights.string();
    attempt.optimizer = describe(options_.optimizer);
    attempt.command = options_.command;
    attempt.flags = options_.flags;
    attempt.config = options_.settings;
    attempt.versions = options_.versions;
    record_ = std::make_unique<run_folder::RunRecorder>(run_dir_, std::move(attempt),
                                                        reuse_of(options_, job_.identity()), say);
    progress_.write_to(run_dir_ / run_folder::kLogName);
    for (const std::string& problem : companions_.problems) say(problem);
    model_file_ =
        std::make_unique<ModelFile>(place,
                                    model_.parameter_count() * static_cast<int64_t>(sizeof(float)) +
                                        kHeaderBytesMax + companions_.bytes(),
                                    run_dir_ / run_folder::kSaveToName);
    metrics_ = std::make_unique<MetricsFile>(run_dir_ / run_folder::kMetricsName,
                                             std::ssize(record_->earlier()) + 1, say);
    if (endpoint_ != nullptr)
      endpoint_->begin({.run_dir = run_dir_.string(),
                        .attempt = std::ssize(record_->earlier()) + 1,
                        .world_size = job_.world_size(),
                        .total_steps = schedule_.total_steps,
                        .keeps_checkpoints = keeps_checkpoints()});
  }

  void open_event_file(int64_t first_step, int64_t context) {
    events_ = std::make_unique<monitoring::EventFile>(
        run_dir_, first_step, hyper_parameters(options_, schedule_, context, job_.world_size()),
        [this](const std::string& sentence) { progress_.say(sentence); });
  }

  /// None but on rank 0.
  std::vector<monitoring::RunObserver*> observers() const {
    std::vector<monitoring::RunObserver*> all;
    if (metrics_) all.push_back(metrics_.get());
    if (events_) all.push_back(events_.get());
    if (endpoint_ != nullptr) all.push_back(endpoint_);
    return all;
  }

  /// Rank 0. What the run is for, and what it says of it.
  void leave_model(RunEnd& end) {
    if (end.result.has_stopped_early) progress_.say(why_early(end.result));
    if (best_model_) end.model_is_of = restore_best(end.result);
    end.model = save_model();
    end.metrics = metrics_->description();
    record_->set_steps(end.result.steps);
    record_->set_model(end.model.value_or(""),
                       end.model_is_of ? std::optional(end.model_is_of->job_step) : std::nullopt);
    if (options_.log_json) {
      std::cout << json_of(end) << std::flush;
    } else {
      print_end(end, std::cout);
    }
    const bool goes_on = end.result.leave == changes::LeaveRequest::drain;
    if (best_model_ && end.model && !goes_on) best_model_->remove();
  }

  void open_best_model(const std::optional<BestValidation>& known) {
    best_model_.emplace(run_dir_ / run_folder::kBestModelName, model_, known,
                        [this](const std::string& sentence) { progress_.say(sentence); });
  }

  std::string why_early(const LoopResult& result) const {
    if (!result.has_stopped_early) return "";
    return early_stop_sentence(result.validations, options_.early_stopping);
  }

  /// Rank 0. Of which validation the model is that will be saved.
  std::optional<BestValidation> restore_best(const LoopResult& result) {
    std::optional<BestValidation> last;
    if (result.last_validation_step == result.steps)
      last = {result.steps, result.last_validation_loss};
    return best_model_->restore(last);
  }

  /// Rank 0. Returns where it is; nothing if somebody has said to leave without it.
  std::optional<fs::path> save_model() {
    job_.enter(plan::Phase::save);
    const auto is_stopped = [this] { return job_.leave_asked() == changes::LeaveRequest::stop; };
    const bool was_stopped = is_stopped();  // then stopping once more can mean nothing else
    const std::optional<ModelPlace> saved = model_file_->save(
        [this](const fs::path& path) {
          model::save_weights(path, model_, model::metadata_of(model_));
        },
        {.notice = [this](const std::string& sentence) { progress_.say(sentence); },
         .gives_up = [&] { return !was_stopped && is_stopped(); }});
    if (!saved) return std::nullopt;
    if (saved->is_folder) {
      for (const std::string& problem : write_companions(saved->weights.parent_path(), companions_))
        progress_.say(problem);
    }
    return saved->weights;
  }

  void save_trace(comm::Communicator& host) {
    try {
      write_trace(options_.trace, trace_, host);
      if (job_.rank() == 0) progress_.say("trace: " + options_.trace.string());
    } catch (const IoError& error) {  // rank 0 alone, after all ranks have told it theirs
      progress_.say(std::string(error.what()) + "; the run ends without its trace");
    }
  }

  std::unique_ptr<Stepper> make_stepper(const Options& optimizer) {
    const StepperOptions stepper{
        .optimizer = optimizer,
        .decays_all = decays_all(options_.optimizer),
        .max_grad_norm = options_.max_grad_norm,
        .accumulation = options_.accumulation,
        .host_window = options_.host_window,
        .bucket_bytes = static_cast<int64_t>(options_.bucket_mebibytes * (1 << 20)),
        .bf16_on_wire = options_.bf16_on_wire,
        .step_in_backward = options_.step_in_backward,
        .clip_by_previous_norm = options_.clip_by_previous_norm,
        .loss_scale =
            scales_loss(options_.precision) ? std::optional(options_.loss_scale) : std::nullopt,
        .trace = options_.trace.empty() ? nullptr : &trace_,
        .companions = companions_.files,
        .notice = [this](std::string_view sentence) { progress_.say(sentence); }};
    return options_.optimizer.kind == OptimizerKind::adamw
               ? make_adamw_stepper(job_, model_, stepper)
               : make_fusedbun_stepper(job_, model_, stepper,
                                       options_.checkpoints ? &resume_ : nullptr);
  }

  MemoryQuestion memory_question(const Stepper& stepper, const LoopOptions& loop,
                                 int64_t state_bytes) const {
    return {.model = model::shape_of(initial_.config),
            .parameters = model_.parameter_count(),
            .frozen_parameters = count_frozen(model_),
            .precision = options_.precision,
            .checkpoints_activations = options_.checkpoints_activations,
            .dropout = model_.dropout(),
            .sequences = loop.share.micro_sequences,
            .context = loop.context,
            .accumulation = options_.accumulation,
            .world_size = job_.world_size(),
            .transport = stepper.transport(),
            .is_sharded = options_.optimizer.kind == OptimizerKind::fusedbun,
            .bf16_on_wire = options_.bf16_on_wire,
            .clips = options_.max_grad_norm > 0,
            .state_bytes = state_bytes,
            .on_gpu = options_.use_gpu,
            .bucket_bytes = static_cast<int64_t>(options_.bucket_mebibytes * (1 << 20)),
            .steps_in_backward = options_.step_in_backward,
            .keeps_checkpoints = keeps_checkpoints()};
  }

  /// After an error: what was lost, and how to go on. Said by one rank, rank 0, or if that is the lost one the next; unless the
  /// launcher says it.
  void say_what_is_left(const std::exception& error) {
    if (LastWords::are_wanted()) return;
    const bool lost_first = std::string_view(error.what()).starts_with("rank 0 ");
    if (job_.rank() != (lost_first ? 1 : 0)) return;
    note_durable();
    if (last_words_.sentence().empty()) return;
    run_folder::write_to_standard_error(launcher::error_line(
        last_words_.sentence() + "; " + last_words_.same_command() +
        (last_words_.has_checkpoint() ? " goes on from there" : " starts anew")));
  }

  /// Rank 0 is told of each save; the others, and all ranks after a load, look here.
  void note_durable() {
    const auto step = durable();
    if (step) last_words_.checkpoint_durable(*step);
  }

  std::optional<int64_t> durable() const {
    return checkpoints_ ? job_.checkpointer().status().durable : std::nullopt;
  }

  bool has_saved_checkpoint() const {
    return checkpoints_ && job_.checkpointer().status().last_seconds > 0;
  }

  bool keeps_checkpoints() const {
    return options_.checkpoints && options_.optimizer.kind == OptimizerKind::fusedbun;
  }

  /// Samples, schedule and arithmetic go on as they were, or it is another run.
  void require_same_run_as_before(const RunValues& saved, const RunValues& values,
                                  const fs::path& folder) {
    const std::string broken = differences_that_break(saved, values);
    is_another_run_ = !broken.empty();
    FUSEDBUN_REQUIRE(
        broken.empty() || resumes_another_run(), ConfigError,
        folder.string() + " was saved by a run with other values: " + broken +
            "; give the same to go on, or --overwrite to start anew; hyperparameters of a running "
            "job are changed by fusedbun set");
    const std::string schedule = differences_of_schedule(saved, values);
    if (job_.rank() != 0) return;
    if (!schedule.empty()) progress_.say("the schedule is another from here on: " + schedule);
    if (!broken.empty()) progress_.say("the run goes on with other values: " + broken);
  }

  /// --resume named a folder elsewhere.
  bool resumes_another_run() const { return !resume_.from.path.empty(); }

  /// What became of earlier attempts, in one line.
  void say_where_it_begins(int64_t first_step) {
    const auto earlier = std::ssize(record_->earlier());
    std::string sentence;
    if (earlier > 0) {
      const run_folder::Attempt& last = record_->earlier().back();
      sentence = "the run folder holds " + std::to_string(earlier) + " earlier " +
                 (earlier == 1 ? "attempt" : "attempts") + ", the last " + name_of(last.state) +
                 " after " + std::to_string(last.steps) + " steps: ";
    }
    if (resume_.loaded) {
      sentence += "this one goes on after step " + std::to_string(first_step) + ", from " +
                  resume_.loaded->folder.string();
      if (resume_.loaded->world_size != job_.world_size()) {
        sentence += ", saved by " + std::to_string(resume_.loaded->world_size) + " ranks";
      }
      sentence += " (--overwrite starts anew)";
    } else if (earlier > 0) {
      sentence += "this one starts from step 0, since there is no checkpoint";
    }
    if (!sentence.empty()) progress_.say(sentence);
    if (!resume_.loaded) return;
    for (const std::string& damaged : resume_.loaded->damaged)
      progress_.say("passed over: " + damaged);
    for (const std::string& left : resume_.loaded->left_out) progress_.say("not loaded: " + left);
  }

  void say_start(const Stepper& stepper, const SampleCounts& counts,
                 const std::vector<int64_t>& planned_bytes, const MemoryForecast& forecast) {
    say_where_it_begins(stepper.job_step());
    for (const std::string& sentence :
         start_sentences(options_, initial_, model_.parameter_count(), corpora_.training,
                         corpora_.validation(), launcher::has_bfloat16_products())) {
      progress_.say(sentence);
    }
    progress_.say("run: " + describe_length(schedule_.total_steps, counts));
    progress_.say("learning rate: " + describe(schedule_));
    if (const int64_t frozen = count_frozen(model_); frozen > 0)
      progress_.say("frozen: " + std::to_string(frozen) + " of " +
                    std::to_string(model_.parameter_count()) + " parameters");
    progress_.say("ranks: " + std::to_string(job_.world_size()) + ", " +
                  std::to_string(at::get_num_threads()) + " threads each; " +
                  job_.backend().reason);
    progress_.say("optimizer: " + describe(options_.optimizer));
    if (job_.world_size() > 1) progress_.say("gradients: " + stepper.describe_transport());
    progress_.say("optimizer state by the plan: " + bytes_per_rank(planned_bytes));
    progress_.say("memory by forecast: " + describe(forecast));
    try {
      run_folder::AtomicFile plan(run_dir_ / run_folder::kPlanName);
      plan.write(stepper.plan());
      plan.commit();
    } catch (const IoError& error) {
      progress_.say(std::string(error.what()) + "; the run goes on");
    }
    progress_.say("run folder: " + run_dir_.string());
    if (!job_.control_address().empty()) progress_.say("control plane: " + job_.control_address());
    if (endpoint_ != nullptr) progress_.say("metrics: " + endpoint_->url());
  }

  const TrainOptions& options_;
  const InitialModel& initial_;
  const fs::path& run_dir_;
  Job& job_;
  model::CausalLm& model_;
  const Corpora& corpora_;
  const MemoryUse& memory_;
  Progress& progress_;
  LastWords& last_words_;
  LeaveSignals& signals_;
  monitoring::MetricsEndpoint* endpoint_;  ///< null: nobody asked for it, or another rank
  ResumeRequest resume_;
  std::optional<RunCheckpoints> checkpoints_;
  std::unique_ptr<run_folder::RunRecorder> record_;  ///< rank 0, as the two below
  Companions companions_;                            ///< rank 0's
  std::unique_ptr<ModelFile> model_file_;
  std::unique_ptr<MetricsFile> metrics_;
  std::unique_ptr<monitoring::EventFile> events_;
  std::optional<BestModel> best_model_;  ///< rank 0, with --keep-best
  Schedule schedule_;
  bool is_another_run_ = false;  ///< than the one whose checkpoint this one goes on from
  StepTrace trace_;
};

/// Looks at files. Where all ranks are on one host they all see the same, and what is wrong is thrown at once; a rank of several hosts
/// returns it, with the host's name, to be told when all have met: the others would wait for it.
std::exception_ptr of_this_host(const plan::Identity& identity, const std::function<void()>& look) {
  try {
    look();
  } catch (const Error& error) {
    if (identity.local_world_size == identity.world_size) throw;
    return std::make_exception_ptr(Error(error.code(), "on " + host_name() + ": " + error.what()));
  }
  return nullptr;
}

}  // namespace

void train(const TrainOptions& options) {
  validate(options);
  const plan::Identity identity = plan::identify(read_environment(), options.identity);
  LeaveSignals signals(identity.rank == 0);
  if (options.use_gpu) require_gpu(identity);
  std::optional<InitialModel> initial;
  const std::exception_ptr missing = of_this_host(identity, [&] {
    initial = choose_initial_model(options);
    data::require_present(options.data);
    data::require_present(options.eval_data);
  });
  share_of_batch(options.batch, options.accumulation, identity.rank, identity.world_size);
  if (identity.rank == 0 && !options.save.empty())
    checkpoint::require_writable(checkpoint::place_of(options.save));
  if (identity.rank == 0 && !options.trace.empty()) run_folder::require_writable(options.trace);
  std::optional<monitoring::MetricsEndpoint> endpoint;
  if (identity.rank == 0 && options.metrics_port)
    endpoint.emplace(listen_options(options), options.versions);
  HealthProbe probe(options.health_port, identity.local_rank);
  set_threads(options.threads, identity.local_world_size);
  const fs::path run_dir = run_folder_of(options, identity);
  const bool resumed = is_resumed(options, identity, run_dir);
  if (identity.rank == 0 && !resumed) {
    run_folder::require_usable(run_dir, reuse_of(options, identity));
  }
  const bool is_shown = identity.rank == 0 && !options.quiet;
  Progress progress(is_shown ? Progress::Screen(run_folder::write_to_standard_error) : nullptr,
                    options.log_json ? Progress::Style::json : style_of_stderr());
  LastWords last_words(options.run_dir.empty() ? "--run-dir " + launcher::quoted(run_dir.string())
                                               : "");
  Job job({.backend = options.backend,
           .identity = options.identity,
           .program = launcher::program_text(),
           .run_dir = run_dir,
           .control = options.control,
           .control_address = options.control_address,
           .control_credentials = options.control_credentials,
           .insecure_control = options.insecure_control,
           .control_rate = options.control_rate,
           .changes = options.changes,
           .use_gpu = options.use_gpu,
           .share_gpu = options.share_gpu,
           .timeout = options.timeout,
           .health = options.health,
           .keep_checkpoints = options.keep_checkpoints,
           .checkpoint_saved =
               [&](const SavedCheckpoint& saved) {
                 last_words.checkpoint_durable(saved.job_step);
                 if (endpoint)
                   endpoint->checkpoint_saved(saved.job_step, saved.bytes, saved.seconds);
                 say_saved(progress, saved);
               },
           .notice = [&progress](std::string_view sentence) { progress.say(sentence); }});
  const HealthProbe::WatchedJob probed(probe, job);
  if (probe.port()) progress.say("health: port " + std::to_string(*probe.port()));
  std::optional<monitoring::MetricsEndpoint::WatchedRanks> watched;
  if (endpoint) watched.emplace(*endpoint, [&job] { return job.ranks(); });
  try {
    comm::rethrow_on_all_ranks(*job.channels().host, [&] {
      if (missing) std::rethrow_exception(missing);
    });
  } catch (const std::exception& error) {
    job.fail(error);
  }
  if (is_finished(job, resumed, run_dir, progress)) {
    if (options.checkpoints) job.checkpointer();  // what a killed save has left goes
    job.finish();
    return;
  }
  std::shared_ptr<model::CausalLm> model;
  std::optional<Corpora> corpora;
  std::optional<MemoryUse> memory;
  try {
    // Connected, a rank may read for as long as it lives, and what one cannot read is the same error on all.
    const data::CorpusOptions read = corpus_options(options, *initial, run_dir, progress);
    comm::Communicator& host = *job.channels().host;
    comm::rethrow_on_all_ranks(host, [&] {  // one rank of each host
      if (job.identity().local_rank != 0) return;
      data::prepare_indexes(options.data, read);
      data::prepare_indexes(options.eval_data, read);
    });
    comm::rethrow_on_all_ranks(host, [&] {
      corpora.emplace(options, read);
      memory.emplace(job.placement().device);
      model = make_model(*initial, options);
    });
  } catch (const std::exception& error) {
    job.fail(error);
  }
  const Run::End end = Run(options, *initial, run_dir, job, *model, *corpora, *memory, progress,
                           last_words, signals, endpoint ? &*endpoint : nullptr)
                           .to_its_end();
  if (!end.is_saved) throw Error(ExitCode::left_early, "left without saving the model, as told");
  if (end.leave == changes::LeaveRequest::drain) {
    throw Error(ExitCode::left_early,
                std::string("left before the last step as asked; the model so far is saved") +
                    (!end.again.empty()
                         ? ", and " + end.again + " goes on from here"
                         : " (a new start begins at the newest checkpoint, or at step 0; --init "
                           "goes on from that model)"));
  }
}

}  // namespace fusedbun::train

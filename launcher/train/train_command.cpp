#include "fusedbun/launcher/train/train_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>

#include "fusedbun/core/descriptor_limit.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/launcher/cli/log_record.h"
#include "fusedbun/launcher/cli/own_words.h"
#include "fusedbun/launcher/cli/torch_program.h"
#include "fusedbun/launcher/data/corpus.h"
#include "fusedbun/launcher/env/versions.h"
#include "fusedbun/launcher/train/run_config.h"
#include "fusedbun/launcher/train/torchelastic_error.h"
#include "fusedbun/launcher/train/trainer.h"

namespace fusedbun::launcher {
namespace {

using train::TrainOptions;

/// What was typed, before names become values.
struct Flags {
  TrainOptions options;
  std::string backend = "auto";
  std::string mask, low_precision;
  std::string precision = "float32";
  double timeout_seconds = 60;
  double heartbeat_seconds = 1;
  double stall_seconds = 5;
  double lost_seconds = 10;
  double hang_seconds = 1800;
  bool no_control = false;
  bool no_host_window = false;
  bool no_checkpoints = false;
  bool no_tensorboard = false;
  std::string checkpoint_every = "10m";
  std::string schedule = "cosine";
  std::string warmup, tokens;
  std::string packing = "auto", long_documents = "refuse";
  std::vector<std::string> configs;
  bool print_config = false;
};

void add_config_flags(CLI::App& command, Flags& flags) {
  constexpr const char* kGroup = "Configuration";
  command
      .add_option(
          "--config", flags.configs,
          "Take flags from these files: TOML (lr = 1e-3, data = [\"a/\", \"b/\"], a table [model] "
          "as "
          "for --model-config), the run.json of a run that is to be repeated, or a model's file. "
          "What is typed counts first, then FUSEDBUN_LR and so on, then the last file")
      ->type_name("FILE")
      ->group(kGroup);
  command
      .add_flag("--print-config", flags.print_config,
                "Print every flag's value and where it is from, as such a TOML file; train nothing")
      ->group(kGroup);
}

void add_data_flags(CLI::App& command, Flags& flags) {
  TrainOptions& options = flags.options;
  command
      .add_option(
          "--data", options.data,
          "Text files and folders, read as bytes, or files of tokens (.bin, as fusedbun data "
          "tokenize, llm.c and nanoGPT write them); the last tenth validates")
      ->default_str(std::string(data::kDefaultTextFolder))
      ->group("Data and files");
  command
      .add_option("--eval-data", options.eval_data,
                  "Validate with these files instead, all of them; --data then trains as a whole")
      ->group("Data and files");
  command
      .add_option("--packing", flags.packing,
                  "stream: cut the tokens every --context; documents: as many whole documents as "
                  "fit, and padding; auto: documents where prompts carry no loss, else stream")
      ->group("Data and files");
  command
      .add_option("--long-documents", flags.long_documents,
                  "Where documents stay whole, of one that is longer than --context: refuse, cut "
                  "(its beginning is taken) or skip")
      ->group("Data and files");
  command
      .add_option("--document-token", options.document_token,
                  "The token between documents, in .bin files of others")
      ->default_str("config.json's eos_token_id")
      ->group("Data and files");
  command
      .add_flag("--attend-across-documents", options.attends_across_documents,
                "Let a token see the documents before its own in the same sequence, and predict "
                "the first of the next")
      ->group("Data and files");
  command
      .add_option(
          "--init", options.init,
          "Start from this model: a Hugging Face folder of a GPT-2, Llama, Mistral, Qwen2 or Qwen3 "
          "(config.json, safetensors), or a GPT-2's safetensors file")
      ->group("Data and files");
  command
      .add_option("--model-config", options.model_config,
                  "Start from random weights of this model: a config.json, a folder with one, or a "
                  "TOML file in its words (model_type = \"llama\", hidden_size = 512, ...)")
      ->group("Data and files");
  command
      .add_option("--save", options.save,
                  "Leave the model here: a folder that transformers opens, or a file named "
                  "*.safetensors for the weights alone")
      ->default_str("RUN_DIR")
      ->group("Data and files");
  command.add_option("--run-dir", options.run_dir, "Everything else that a run writes")
      ->default_str("runs/DATE-TIME-PID")
      ->group("Data and files");
  command
      .add_flag("--overwrite", options.overwrite,
                "Start anew in a folder that was used before: its checkpoints go, its model stays "
                "until there is a new one")
      ->group("Data and files");
}

void add_checkpoint_flags(CLI::App& command, Flags& flags) {
  TrainOptions& options = flags.options;
  constexpr const char* kGroup = "Checkpoints";
  command
      .add_option("--checkpoint-every", flags.checkpoint_every,
                  "Steps (500) or time (90s, 10m, 1h) between checkpoints; 0: only when the run is "
                  "asked to leave")
      ->group(kGroup);
  command.add_option("--keep", options.keep_checkpoints, "How many checkpoints stay, 0: all")
      ->group(kGroup);
  command.add_flag("--no-checkpoints", flags.no_checkpoints, "Save none and resume from none")
      ->group(kGroup);
  command
      .add_option_function<std::string>(
          "--resume",
          [&options](const std::string& from) {
            options.resume = true;
            options.resume_from = from;
          },
          "Go on from the newest checkpoint of RUN_DIR, which happens without the flag too; or "
          "from "
          "that of a STEP, or of another run: its folder, or the checkpoint's")
      ->expected(0, 1)
      ->type_name("[STEP|FOLDER]")
      ->default_str("if there is one")
      ->group(kGroup);
  command
      .add_flag("--load-partial", options.load_partial,
                "From a checkpoint of another model take what fits, and say what not")
      ->group(kGroup);
  command
      .add_flag("--fallback", options.fallback,
                "Where the newest checkpoint is damaged, take the newest that is whole")
      ->group(kGroup);
}

void add_model_flags(CLI::App& command, TrainOptions& options) {
  const auto add = [&](const char* name, std::optional<int64_t>& value, const char* what,
                       const char* shown) {
    command.add_option(name, value, what)->default_str(shown)->group("Model");
  };
  add("--layers", options.model.layers, "Transformer blocks", "4, or the model's");
  add("--heads", options.model.heads, "Attention heads", "4, or the model's");
  add("--width", options.model.width, "Width of the residual stream", "128, or the model's");
  add("--context", options.model.context, "Tokens per sequence",
      "128, or the model's, at most 1024");
  command
      .add_option("--dropout", options.model.dropout,
                  "Probability of dropout in training, everywhere where the model has it; 0: none")
      ->default_str("config.json's; models of our own sizes: 0")
      ->group("Model");
  command
      .add_option("--freeze", options.freeze,
                  "Do not train the parameters whose names match one of these patterns: "
                  "'model.embed_tokens.*' 'h.[0-3].*'")
      ->type_name("PATTERN")
      ->group("Model");
}

void add_optimizer_flags(CLI::App& command, Flags& flags) {
  TrainOptions& options = flags.options;
  const std::map<std::string, train::OptimizerKind> kinds = {
      {"fusedbun", train::OptimizerKind::fusedbun}, {"adamw", train::OptimizerKind::adamw}};
  train::OptimizerChoice& choice = options.optimizer;
  command
      .add_option("--optimizer", choice.kind,
                  "fusedbun (sharded), or adamw (LibTorch's, to compare with)")
      ->transform(CLI::CheckedTransformer(kinds).description(""))
      ->default_str("fusedbun")
      ->group("Optimizer");
  command
      .add_option(
          "--preset", choice.preset,
          "recommended, sm3, compact, lean or elementwise; fusedbun or fusion: the original "
          "descriptions with their defaults (lean is fusedbun; elementwise is fusion with "
          "--centralize --use-rms)")
      ->group("Optimizer");
  const auto add = [&](const char* name, std::optional<double>& value, const char* what) {
    command.add_option(name, value, what)->default_str("the preset's")->group("Optimizer");
  };
  add("--lr", choice.lr, "Peak learning rate");
  add("--eps", choice.eps, "Mask threshold and floor of the denominator");
  add("--weight-decay", choice.weight_decay, "Decoupled weight decay");
  command
      .add_flag(
          "--decay-all", choice.decays_all,
          "Weight decay of biases and norms too; else parameters of fewer than two dimensions "
          "have none")
      ->group("Optimizer");
  add("--beta-decay", choice.beta_decay, "Decay of the second moment (adamw: beta2)");
  add("--momentum-beta", choice.momentum_beta, "Decay of the momentum (adamw: beta1)");
  // A function, because CLI11 takes an optional<bool> for a counter and sets it to 0.
  const auto add_switch = [&](const char* name, std::optional<bool>& value, const char* what) {
    command
        .add_flag_function(
            name, [&value](int64_t count) { value = count > 0; }, what)
        ->default_str("the preset's")
        ->group("Optimizer");
  };
  add_switch("--centralize,!--no-centralize", choice.centralize,
             "Subtract each matrix row's mean from its gradient");
  add_switch("--use-rms,!--no-use-rms", choice.use_rms,
             "Divide by the root of the second moment; off: SGD with momentum");
  add_switch("--prepare-hessian,!--no-prepare-hessian", choice.prepare_hessian,
             "Keep a separate exp_hessian and divide by its root");
  command
      .add_option(
          "--mask", flags.mask,
          "Where |gradient| <= eps: zero (it counts as 0), hold (and the second moment stays) "
          "or off")
      ->default_str("the preset's")
      ->group("Optimizer");
  command
      .add_option("--low-precision", flags.low_precision,
                  "With --precision bf16, what the optimizer keeps beside the parameters: master "
                  "(float32, 4 bytes each), remainder (the master's other 16 bits: the same "
                  "steps), stochastic (nothing; new values are rounded stochastically)")
      ->default_str("master")
      ->group("Optimizer");
  command.add_flag("--momentum-bf16", choice.momentum_bf16, "Keep the momentum in bfloat16")
      ->group("Optimizer");
  command
      .add_option("--changes", options.changes,
                  "Changes of hyperparameters at given steps: a TOML file of [[changes]]")
      ->group("Optimizer");
  command
      .add_flag("--propagate-nonfinite", choice.propagate_nonfinite,
                "Do not skip steps whose gradients are NaN or inf")
      ->group("Optimizer");
  command
      .add_option("--clip", options.max_grad_norm, "Largest norm of the averaged gradient, 0: any")
      ->group("Optimizer");
}

void add_precision_flags(CLI::App& command, Flags& flags) {
  constexpr const char* kGroup = "Precision and memory";
  command
      .add_option("--precision", flags.precision,
                  "float32; bf16: parameters and arithmetic, with float32 masters in the "
                  "optimizer; bf16-autocast: float32 parameters, matrix products in bfloat16; "
                  "fp16-autocast: in float16, with dynamic loss scaling (slow on CPUs)")
      ->group(kGroup);
  LossScaleRules& scale = flags.options.loss_scale;
  command
      .add_option("--loss-scale", scale.initial,
                  "fp16-autocast: what the loss is multiplied by at first; halved when gradients "
                  "overflow")
      ->group(kGroup);
  command
      .add_option("--loss-scale-growth-every", scale.growth_interval,
                  "fp16-autocast: good steps in a row until it is doubled")
      ->group(kGroup);
  command
      .add_flag("--activation-checkpointing", flags.options.checkpoints_activations,
                "Compute each transformer block once more in backward rather than keep what it "
                "computed: less memory, a third more work, the same bits")
      ->group(kGroup);
}

void add_schedule_flags(CLI::App& command, Flags& flags) {
  constexpr const char* kGroup = "Schedule";
  train::ScheduleChoice& schedule = flags.options.schedule;
  train::RunLength& length = flags.options.length;
  command.add_option("--steps", length.steps, "Job steps; or one of the next two")
      ->default_str("300")
      ->group(kGroup);
  command
      .add_option("--epochs", length.epochs,
                  "How often the training data is seen; 0.5 is half of it")
      ->group(kGroup);
  command.add_option("--tokens", flags.tokens, "Tokens to train on, as 20.5M (k, M, G)")
      ->group(kGroup);
  command
      .add_option("--schedule", flags.schedule,
                  "Of the learning rate after warm-up: cosine, linear, constant, or wsd (constant, "
                  "then down at the end)")
      ->group(kGroup);
  command
      .add_option("--warmup", flags.warmup,
                  "Steps until the peak learning rate, or a part of the run (5%)")
      ->default_str("50, at most a quarter")
      ->group(kGroup);
  command
      .add_option("--min-lr", schedule.floor_fraction,
                  "Learning rate at the end, as a fraction of the peak")
      ->default_str("0.1; linear: 0")
      ->group(kGroup);
  command
      .add_option("--decay", schedule.decay_fraction,
                  "wsd: the part of the run in which it goes down")
      ->default_str("0.2")
      ->group(kGroup);
  train::EarlyStopping& early = flags.options.early_stopping;
  command
      .add_option("--early-stop", early.patience,
                  "End after so many validations in a row without a better loss; 0: never")
      ->group(kGroup);
  command
      .add_option("--early-stop-delta", early.min_delta,
                  "By how much a loss must be lower to be better")
      ->group(kGroup);
  command
      .add_flag("--keep-best", flags.options.keep_best,
                "The model that is left is that of the best validation, not the last")
      ->group(kGroup);
}

void add_run_flags(CLI::App& command, TrainOptions& options) {
  command.add_option("--batch", options.batch, "Sequences per job step, all ranks together")
      ->group("Run");
  command.add_option("--accumulate", options.accumulation, "Backward passes per job step")
      ->group("Run");
  command.add_option("--seed", options.seed, "Of the weights, the order of the data, and dropout")
      ->group("Run");
  command
      .add_option("--eval-every", options.eval_every, "Steps between validations, 0: start and end")
      ->group("Run");
  command
      .add_option("--validation-batches", options.validation_batches,
                  "Batches per validation, at most")
      ->group("Run");
  command.add_flag("-q,--quiet", options.quiet, "Print the end only")->group("Run");
}

void add_monitoring_flags(CLI::App& command, Flags& flags) {
  TrainOptions& options = flags.options;
  constexpr const char* kGroup = "Monitoring";
  command
      .add_option("--metrics-port", options.metrics_port,
                  "Serve http://127.0.0.1:PORT/metrics for Prometheus, from rank 0 for all ranks; "
                  "0: a free port")
      ->type_name("PORT")
      ->group(kGroup);
  command
      .add_option("--metrics-address", options.metrics_address,
                  "Serve it at this IP address of rank 0's host; 0.0.0.0: at all. Who reaches it "
                  "may read it")
      ->type_name("ADDRESS")
      ->default_str("127.0.0.1")
      ->group(kGroup);
  command
      .add_option("--health-port", options.health_port,
                  "Serve gRPC health alone, in plaintext, on all interfaces of each host, for "
                  "kubelet's probes: \"\" the process lives, fusedbun.progress its steps end; 0: a "
                  "free port")
      ->type_name("PORT")
      ->group(kGroup);
  command
      .add_flag("--log-json", options.log_json,
                "Print JSON lines, for collectors of logs: time, level, rank, message, and the "
                "numbers of steps; train.log stays text")
      ->group(kGroup);
  command
      .add_flag("--no-tensorboard", flags.no_tensorboard,
                "Write no events.out.tfevents file into RUN_DIR (tensorboard --logdir runs)")
      ->group(kGroup);
}

void add_rank_flags(CLI::App& command, Flags& flags) {
  TrainOptions& options = flags.options;
  const std::map<std::string, bool> devices = {{"cpu", false}, {"cuda", true}};
  command.add_option("--backend", flags.backend, "auto, gloo, mpi or nccl")->group("Ranks");
  command.add_option("--device", options.use_gpu, "cpu or cuda")
      ->transform(CLI::CheckedTransformer(devices).description(""))
      ->default_str("cpu")
      ->group("Ranks");
  command
      .add_flag("--share-gpu", options.share_gpu,
                "Let several ranks be on one GPU, to try a job on few GPUs; NCCL 2.30")
      ->group("Ranks");
  command
      .add_option("--threads", options.threads,
                  "Per rank, 0: processors divided by the ranks of this host")
      ->group("Ranks");
  command
      .add_option("--timeout", flags.timeout_seconds,
                  "Seconds to connect; where ranks have no heartbeats, of every wait for others")
      ->group("Ranks");
  command.add_option("--heartbeat", flags.heartbeat_seconds, "Seconds between signs of life")
      ->group("Ranks");
  command
      .add_option("--lost-timeout", flags.lost_seconds,
                  "Seconds without a sign of life until a rank is lost and the job ends with 76")
      ->group("Ranks");
  command
      .add_option("--stall-timeout", flags.stall_seconds,
                  "Seconds without a step's end until health says so, or 10 median steps if longer")
      ->group("Ranks");
  command
      .add_option("--hang-timeout", flags.hang_seconds,
                  "Seconds in which all ranks live, but none ends a step or changes its phase, "
                  "until the job ends with 124; 0: never")
      ->group("Ranks");
  command
      .add_flag("--no-host-window", flags.no_host_window,
                "Keep private copies of the parameters, also on one host")
      ->group("Ranks");
  command
      .add_option("--bucket-mib", options.bucket_mebibytes, "Gradients that travel together, MiB")
      ->group("Ranks");
  command
      .add_flag("--bf16-wire", options.bf16_on_wire,
                "Send gradients and what a step changes as bfloat16, half the bytes; sums and "
                "parameters stay float32")
      ->group("Ranks");
  command
      .add_flag("--step-in-backward", options.step_in_backward,
                "Step each bucket during backward; needs --propagate-nonfinite, and --clip 0 or "
                "--clip-by-previous-norm")
      ->group("Ranks");
  command
      .add_flag("--clip-by-previous-norm", options.clip_by_previous_norm,
                "With --step-in-backward: --clip by the gradient's norm of the step before")
      ->group("Ranks");
  command
      .add_option("--trace", options.trace,
                  "Write what every rank did when, for ui.perfetto.dev, to this file")
      ->group("Run");
  command.add_flag("--no-control", flags.no_control, "Serve no control plane")->group("Ranks");
  command.add_option("--control", options.control_address, "Serve it at HOST:PORT")
      ->default_str("a socket in RUN_DIR")
      ->group("Ranks");
  command
      .add_option("--control-credentials", options.control_credentials,
                  "Folder with ca.pem, server.pem, server.key and roles, for hosts off loopback")
      ->group("Ranks");
  command
      .add_flag("--insecure-control", options.insecure_control,
                "Serve it off loopback without encryption")
      ->group("Ranks");
  command
      .add_option("--control-rate", options.control_rate,
                  "Changes per second that one client may make, 0: any number")
      ->group("Ranks");
  const auto add = [&](const char* name, auto& value, const char* what) {
    command.add_option(name, value, what)->default_str("the launcher's")->group("Ranks");
  };
  add("--rank", options.identity.rank, "This process");
  add("--world-size", options.identity.world_size, "All processes");
  add("--master-addr", options.identity.master_addr, "Host of rank 0");
  add("--master-port", options.identity.master_port, "Port of the rendezvous there");
}

int64_t microseconds(double seconds) {
  return static_cast<int64_t>(seconds * 1e6);
}

/// Every flag with the value that it has, given or not.
run_folder::NamedTexts values_of(const CLI::App& command) {
  run_folder::NamedTexts values;
  for (const CLI::Option* option : command.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames()[0] == "help") continue;
    std::string value = option->get_default_str();
    if (option->count() > 0) {
      value = CLI::detail::join(option->results(), " ");
    } else if (value.empty() && option->get_items_expected_max() == 0) {
      value = "false";  // a switch
    }
    values.emplace_back("--" + option->get_lnames()[0], value);
  }
  return values;
}

/// Values from files and the environment, for what was not typed.
Origins take_settings(CLI::App& command, std::vector<std::string> configs) {
  const plan::Environment environment = read_environment();
  if (const auto named = environment.find("FUSEDBUN_CONFIG");
      configs.empty() && named != environment.end() && !named->second.empty()) {
    configs = {named->second};
  }
  std::vector<Setting> settings;
  for (const std::string& config : configs)
    std::ranges::move(train::read_run_config(config), std::back_inserter(settings));
  std::ranges::move(settings_of_environment(command, environment, train::is_typed_only),
                    std::back_inserter(settings));
  return apply_settings(command, settings, train::is_typed_only);
}

void print_config(const CLI::App& command, const Origins& origins,
                  const plan::IdentityFlags& identity) {
  if (plan::identify(read_environment(), identity).rank != 0) return;
  std::cout << settings_text(command, origins, train::is_typed_only);
}

void run(Flags flags) {
  raise_descriptor_limit();  // connections of others must not cost the run its files
  TrainOptions& options = flags.options;
  if (options.log_json)
    launcher::speak_json(plan::identify(read_environment(), options.identity).rank);
  if (options.data.empty()) options.data = {data::kDefaultTextFolder};
  options.backend = plan::parse_backend(flags.backend);
  if (!flags.mask.empty()) options.optimizer.mask = parse<Mask>(flags.mask);
  if (!flags.low_precision.empty())
    options.optimizer.low_precision = parse<LowPrecision>(flags.low_precision);
  options.precision = train::parse_precision(flags.precision);
  options.packing = data::parse_packing(flags.packing);
  options.long_documents = data::parse_long_documents(flags.long_documents);
  options.control = !flags.no_control;
  options.checkpoints = !flags.no_checkpoints;
  options.tensorboard = !flags.no_tensorboard;
  options.schedule.kind = train::parse_schedule(flags.schedule);
  if (!flags.warmup.empty()) options.schedule.warmup = train::parse_warmup(flags.warmup);
  if (!flags.tokens.empty()) options.length.tokens = train::parse_tokens(flags.tokens);
  options.checkpoint_every = train::parse_checkpoint_every(flags.checkpoint_every);
  options.host_window = !flags.no_host_window;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.timeout_seconds * 1000));
  options.health = {.heartbeat_us = microseconds(flags.heartbeat_seconds),
                    .lost_us = microseconds(flags.lost_seconds),
                    .stall_us = microseconds(flags.stall_seconds),
                    .hang_us = microseconds(flags.hang_seconds)};
  train::train(options);
}

}  // namespace

CLI::App* add_train_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* const command = add_torch_command(app, kTrain);
  command->footer(
      "Examples:\n"
      "  fusedbun launch -n 2 -- train --steps 300 --save models/english\n"
      "  fusedbun launch -n 2 -- train --data /usr/lib/python3.11 --init models/english\n"
      "  fusedbun train --config run.toml --lr 3e-4 --print-config\n"
      "  fusedbun launch -n 2 -- train --config runs/a/run.json --run-dir runs/a-again");
  add_config_flags(*command, *flags);
  add_data_flags(*command, *flags);
  add_checkpoint_flags(*command, *flags);
  add_model_flags(*command, flags->options);
  add_optimizer_flags(*command, *flags);
  add_precision_flags(*command, *flags);
  add_schedule_flags(*command, *flags);
  add_run_flags(*command, flags->options);
  add_monitoring_flags(*command, *flags);
  add_rank_flags(*command, *flags);
  command->callback([flags, command] {
    flags->options.command = own_words();
    for (const auto& [name, version] : versions())
      flags->options.versions.emplace_back(name, version);
    try {
      const Origins origins = take_settings(*command, flags->configs);
      flags->options.flags = values_of(*command);
      flags->options.settings = settings_of(*command, train::is_typed_only);
      if (flags->print_config) return print_config(*command, origins, flags->options.identity);
      run(*flags);
    } catch (const Error& error) {
      if (error.code() != ExitCode::left_early) train::write_torchelastic_error(error.what());
      throw;
    } catch (const std::exception& error) {
      train::write_torchelastic_error(error.what());
      throw;
    }
  });
  return command;
}

}  // namespace fusedbun::launcher

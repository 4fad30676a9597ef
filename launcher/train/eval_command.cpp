#include "fusedbun/launcher/train/eval_command.h"

#include <ATen/Parallel.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/standard_error.h"
#include "fusedbun/launcher/cli/output_format.h"
#include "fusedbun/launcher/cli/table.h"
#include "fusedbun/launcher/cli/torch_program.h"
#include "fusedbun/launcher/data/tokenizer_match.h"
#include "fusedbun/launcher/env/host.h"
#include "fusedbun/launcher/train/initial_model.h"
#include "fusedbun/launcher/train/train_options.h"
#include "fusedbun/launcher/train/validation.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kBetweenLines = std::chrono::seconds(5);

struct EvalOptions {
  fs::path model;
  std::vector<fs::path> data;
  std::optional<int64_t> context, document_token;
  int64_t batch = 4;
  int threads = 0;
  std::string precision = "float32";
  std::string long_documents = "refuse";
  bool attends_across_documents = false;
};

/// What is found of one file.
struct Found {
  std::string name;
  train::LossSum sum;
  int64_t documents = 0;
  double seconds = 0;
  double loss() const { return sum.nats / sum.predicted; }
};

data::CorpusOptions corpus_options(const EvalOptions& options, const train::InitialModel& initial) {
  constexpr int64_t kUnaskedContextMax = 1024;
  data::CorpusOptions read{.context = options.context.value_or(
                               std::min(model::context_of(initial.config), kUnaskedContextMax)),
                           .vocab = model::vocab_of(initial.config),
                           .split = data::Split::all_validation,
                           .long_documents = data::parse_long_documents(options.long_documents),
                           .has_borders = !options.attends_across_documents,
                           .separator = options.document_token,
                           .notice = [](const std::string& sentence) {
                             run_folder::write_to_standard_error(sentence + "\n");
                           }};
  if (!read.separator) read.separator = model::end_of_text_in(initial.config_text);
  return read;
}

Found evaluate(model::CausalLm& model, const fs::path& file, const data::CorpusOptions& read,
               int64_t batch) {
  const data::Corpus corpus({file}, read);
  Found found{.name = file.string(), .sum = {}, .documents = corpus.documents(), .seconds = 0};
  const auto start = Clock::now();
  auto told = start;
  const int64_t sequences = corpus.validation_samples();
  for (int64_t first = 0; first < sequences; first += batch) {
    found.sum += train::validation_pass(model, corpus, std::min(batch, sequences - first),
                                        [&](int64_t i) { return first + i; });
    if (Clock::now() - told < kBetweenLines) continue;
    told = Clock::now();
    char line[96];
    std::snprintf(line, sizeof line, ": %lld of %lld sequences, loss %.4f so far\n",
                  static_cast<long long>(std::min(sequences, first + batch)),
                  static_cast<long long>(sequences), found.loss());
    run_folder::write_to_standard_error(found.name + line);
  }
  FUSEDBUN_REQUIRE(found.sum.predicted > 0, DataError,
                   file.string() + ": none of its tokens carries loss");
  found.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return found;
}

std::vector<std::string> row_of(const Found& found) {
  char loss[32], perplexity[32], speed[32];
  std::snprintf(loss, sizeof loss, "%.4f", found.loss());
  std::snprintf(perplexity, sizeof perplexity, "%.3f", std::exp(found.loss()));
  std::snprintf(speed, sizeof speed, "%.0f", found.sum.predicted / found.seconds);
  return {found.name,
          loss,
          perplexity,
          std::to_string(static_cast<int64_t>(found.sum.predicted)),
          std::to_string(found.documents),
          speed};
}

nlohmann::ordered_json json_of(const Found& found) {
  return {{"file", found.name},
          {"loss", found.loss()},
          {"perplexity", std::exp(found.loss())},
          {"tokens", static_cast<int64_t>(found.sum.predicted)},
          {"documents", found.documents},
          {"seconds", found.seconds}};
}

void print(const std::vector<Found>& files, OutputFormat format) {
  Found all{.name = "all", .sum = {}, .documents = 0, .seconds = 0};
  for (const Found& file : files) {
    all.sum += file.sum;
    all.documents += file.documents;
    all.seconds += file.seconds;
  }
  if (format == OutputFormat::json) {
    nlohmann::ordered_json json = {{"files", nlohmann::ordered_json::array()}};
    for (const Found& file : files) json["files"].push_back(json_of(file));
    json["all"] = json_of(all);
    json["all"].erase("file");
    std::cout << json.dump(2) << '\n';
    return;
  }
  std::vector<std::vector<std::string>> rows = {
      {"FILE", "LOSS", "PERPLEXITY", "TOKENS", "DOCUMENTS", "TOKENS/S"}};
  for (const Found& file : files) rows.push_back(row_of(file));
  if (files.size() > 1) rows.push_back(row_of(all));
  for (const std::string& line : aligned(rows)) std::cout << line << '\n';
}

void run(const EvalOptions& options, OutputFormat format) {
  FUSEDBUN_REQUIRE(options.batch >= 1, ConfigError, "--batch: must be at least 1");
  data::require_present(options.data);
  train::TrainOptions from;
  from.init = options.model;
  from.model.context = options.context;
  const train::Precision precision = train::parse_precision(options.precision);
  const train::InitialModel initial = train::choose_initial_model(from);
  const data::CorpusOptions read = corpus_options(options, initial);
  at::set_num_threads(options.threads > 0 ? options.threads : usable_cores());
  const std::shared_ptr<model::CausalLm> model = train::make_model(initial, from);
  model::ForwardOptions forward;
  if (train::has_autocast(precision)) {
    forward.autocast = precision == train::Precision::bf16_autocast ? at::kBFloat16 : at::kHalf;
  }
  model->set_forward(forward);
  if (precision == train::Precision::bf16) model->to(at::kBFloat16);
  model->eval();
  for (const std::string& other : data::other_tokenizers(options.data, initial.folder))
    std::cerr << "fusedbun eval: " << other << '\n';
  std::vector<Found> found;
  for (const fs::path& file : options.data)
    found.push_back(evaluate(*model, file, read, options.batch));
  print(found, format);
}

}  // namespace

CLI::App* add_eval_command(CLI::App& app) {
  CLI::App* const command = add_torch_command(app, kEval);
  command->footer(
      "Examples:\n"
      "  fusedbun eval --model runs/first --data held_back.txt\n"
      "  fusedbun eval --model SmolLM2/ --data a.bin b.bin --context 512 --output json");
  auto options = std::make_shared<EvalOptions>();
  command
      ->add_option("--model", options->model,
                   "A run folder, a Hugging Face folder, or a safetensors file")
      ->required();
  command
      ->add_option("--data", options->data,
                   "Text files and folders, read as bytes, or files of tokens (.bin)")
      ->required();
  command->add_option("--context", options->context, "Tokens per sequence")
      ->default_str("the model's, at most 1024");
  command->add_option("--batch", options->batch, "Sequences at once");
  command->add_option("--threads", options->threads, "0: this host's processors");
  command->add_option("--precision", options->precision,
                      "float32, bf16, bf16-autocast or fp16-autocast");
  command
      ->add_option("--document-token", options->document_token,
                   "The token between documents, in .bin files of others")
      ->default_str("config.json's eos_token_id");
  command->add_option("--long-documents", options->long_documents,
                      "Where prompts carry no loss, of a document that is longer than --context: "
                      "refuse, cut or skip");
  command->add_flag("--attend-across-documents", options->attends_across_documents,
                    "Let a token see the documents before its own in the same sequence");
  const auto format = add_output_flag(*command);
  command->callback([options, format] { run(*options, *format); });
  return command;
}

}  // namespace fusedbun::launcher

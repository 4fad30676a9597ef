#include "fusedbun/launcher/train/run_report.h"

#include <algorithm>
#include <cstdio>

#include "fusedbun/launcher/cli/log_record.h"
#include "fusedbun/launcher/data/tokenizer_match.h"
#include "fusedbun/launcher/train/memory_forecast.h"

namespace fusedbun::train {
namespace {

/// 1234567 -> "1,234,567"
std::string grouped(int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
    text.insert(static_cast<size_t>(at), 1, ',');
  return text;
}

std::string fixed(double value, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

// "12 binary files (first corpus/a.png), 1 compressed by gzip (first corpus/b.gz)"
std::string left_out(const data::TextFiles& text) {
  std::string sentence;
  for (const auto& [kind, left] : text.left_out()) {
    sentence += (sentence.empty() ? "" : ", ") + grouped(left.count) + " " + std::string(kind) +
                " (first " + left.first.string() + ")";
  }
  return sentence;
}

// "packing: 120 sequences of whole documents, 93 % full; 3 documents are longer than the context (cut)"
std::string packing_sentence(const data::Corpus& corpus) {
  const data::DocumentPacking& packing = *corpus.training_packing();
  const double places =
      static_cast<double>(packing.sequences()) * static_cast<double>(corpus.context());
  std::string sentence = "packing: whole documents, sequences are " +
                         fixed(100 * static_cast<double>(packing.places_filled()) / places, 0) +
                         " % full";
  const int64_t count = packing.long_documents();
  if (count > 0) {
    sentence += "; " + grouped(count) + (count == 1 ? " document is" : " documents are") +
                " longer than the context (" + std::string(data::name_of(corpus.long_documents())) +
                ")";
  }
  return sentence;
}

// Empty without dropout.
std::string dropout_sentence(const TrainOptions& options, const model::DropoutRates& rates) {
  if (rates.is_none()) return "";
  return "dropout in training: " + model::describe(rates) +
         (options.model.dropout ? "" : ", as config.json has it (--dropout 0: none)");
}

std::string best_text(const BestValidation& of, const LoopResult& result) {
  return "of step " + std::to_string(of.job_step) +
         (of == result.validations.best ? ", the best validation: " : ": ") + "loss " +
         fixed(of.loss, 4);
}

std::string origin_of(const TrainOptions& options) {
  if (!options.init.empty()) return "from " + options.init.string();
  return (options.model_config.empty() ? "" : "as " + options.model_config.string() + " says, ") +
         "from seed " + std::to_string(options.seed);
}

}  // namespace

std::string precision_sentence(const TrainOptions& options,
                               std::optional<bool> has_bfloat16_products) {
  std::string sentence;
  if (options.precision != Precision::float32)
    sentence = "precision: " + std::string(name_of(options.precision));
  if (scales_loss(options.precision)) {
    char scale[64];
    std::snprintf(scale, sizeof scale, ", loss scale %g at first", options.loss_scale.initial);
    sentence += scale;
    if (!options.use_gpu)
      sentence += " (on CPUs float16 products are several times slower than bfloat16's)";
  } else if (options.precision != Precision::float32 && !options.use_gpu &&
             has_bfloat16_products == std::optional(false)) {
    sentence +=
        " (this processor has no instructions for bfloat16's products: here it is slower than "
        "float32)";
  }
  if (options.checkpoints_activations)
    sentence +=
        (sentence.empty() ? "" : "; ") +
        std::string("activation checkpointing: each block is computed once more in backward");
  return sentence;
}

std::string early_stop_sentence(const ValidationHistory& history, const EarlyStopping& rule) {
  return "stopped early: no validation loss below " +
         fixed(history.reference.value_or(0) - rule.min_delta, 4) + " in " +
         std::to_string(history.without_better) + " validations in a row";
}

std::vector<std::string> start_sentences(const TrainOptions& options, const InitialModel& initial,
                                         int64_t parameters, const data::Corpus& corpus,
                                         const data::Corpus& validation,
                                         std::optional<bool> has_bfloat16_products) {
  const model::ModelShape shape = model::shape_of(initial.config);
  const std::string architecture =
      std::holds_alternative<model::Gpt2Config>(initial.config) ? "GPT-2" : "Llama";
  std::string sources;
  for (const auto& source : options.data) sources += " " + source.string();
  std::string held_back;
  for (const auto& source : options.eval_data) held_back += " " + source.string();
  std::vector<std::string> sentences = {
      "model: " + architecture + ", " + grouped(parameters) + " parameters (" +
          std::to_string(shape.layers) + " layers, " + std::to_string(shape.heads) +
          " heads, width " + std::to_string(shape.width) + ", context " +
          std::to_string(model::context_of(initial.config)) + "), " + origin_of(options),
      (corpus.is_tokens() ? "tokens:" : "text:") + sources + ": " + grouped(corpus.files()) +
          " files, " + grouped(corpus.documents()) + " documents, " +
          grouped(corpus.training_tokens()) + (corpus.is_tokens() ? " tokens" : " bytes") +
          " to train on, " + grouped(validation.validation_tokens()) + " to validate" +
          (held_back.empty() ? "" : " in" + held_back) + "; an epoch is " +
          grouped(corpus.training_samples()) + " sequences"};
  if (corpus.packs_documents()) sentences.push_back(packing_sentence(corpus));
  if (const std::string precision = precision_sentence(options, has_bfloat16_products);
      !precision.empty())
    sentences.push_back(precision);
  if (const std::string dropout = dropout_sentence(options, model::dropout_of(initial.config));
      !dropout.empty())
    sentences.push_back(dropout);
  if (!initial.assumption.empty()) sentences.push_back(initial.assumption);
  if (!initial.folder.empty()) {
    for (const auto* files : {&options.data, &options.eval_data}) {
      for (std::string& other : data::other_tokenizers(*files, initial.folder))
        sentences.push_back(std::move(other));
    }
  }
  if (corpus.text() != nullptr && !corpus.text()->left_out().empty())
    sentences.push_back("text left out: " + left_out(*corpus.text()));
  if (options.optimizer.kind == OptimizerKind::adamw && options.control)
    sentences.emplace_back(
        "control plane: none, --optimizer adamw is for comparison and takes no changes");
  return sentences;
}

std::string bytes_per_rank(const std::vector<int64_t>& bytes) {
  const auto [least, most] = std::ranges::minmax_element(bytes);
  if (*least == *most) return grouped(*most) + " bytes per rank";
  const auto on_rank = [&](auto at) {
    return grouped(*at) + " bytes (rank " + std::to_string(at - bytes.begin()) + ")";
  };
  return on_rank(least) + " to " + on_rank(most);
}

std::string memory_per_rank(const std::vector<int64_t>& bytes, int64_t forecast) {
  const auto most = std::ranges::max_element(bytes);
  const double off = 100 * (static_cast<double>(forecast) / static_cast<double>(*most) - 1);
  return mebibytes_or_gibibytes(*most) + " at the peak" +
         (bytes.size() > 1 ? " (rank " + std::to_string(most - bytes.begin()) + ")" : "") +
         "; the forecast was " + mebibytes_or_gibibytes(forecast) + " (" + (off > 0 ? "+" : "") +
         fixed(off, 0) + " %)";
}

std::string json_of(const RunEnd& end) {
  const LoopResult& result = end.result;
  std::vector<launcher::LogField> fields = {
      {"steps", result.steps},
      {"first_validation_loss", result.first_validation_loss},
      {"last_validation_loss", result.last_validation_loss},
      {"tokens_per_second", result.tokens_per_second},
      {"optimizer_state_bytes", std::ranges::max(end.measured_bytes)},
      {"memory_bytes", std::ranges::max(end.memory)},
      {"metrics", end.metrics}};
  if (end.model) fields.emplace_back("model", end.model->string());
  if (end.model_is_of) fields.emplace_back("model_step", end.model_is_of->job_step);
  return launcher::log_record("info", "the run's training has ended", fields);
}

void print_end(const RunEnd& end, std::ostream& out) {
  const LoopResult& result = end.result;
  const double change = 100 * (result.last_validation_loss / result.first_validation_loss - 1);
  out << "validation loss    " << fixed(result.first_validation_loss, 4) << " -> "
      << fixed(result.last_validation_loss, 4) << " (" << (change > 0 ? "+" : "")
      << fixed(change, 1) << " %) in " << result.steps << " steps\n"
      << "tokens/s           " << fixed(result.tokens_per_second, 0) << "\n"
      << "optimizer state    " << bytes_per_rank(end.measured_bytes)
      << (end.measured_bytes == end.planned_bytes
              ? ", as planned"
              : "; planned: " + bytes_per_rank(end.planned_bytes))
      << "\n"
      << "memory             " << memory_per_rank(end.memory, end.forecast_memory) << "\n"
      << "metrics            " << end.metrics << "\n"
      << "model              " << (end.model ? end.model->string() : "not saved, as told")
      << (end.model && end.model_is_of ? ", " + best_text(*end.model_is_of, result) : "")
      << std::endl;
}

}  // namespace fusedbun::train

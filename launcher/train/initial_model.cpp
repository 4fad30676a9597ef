#include "fusedbun/launcher/train/initial_model.h"

#include <optional>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/text_file.h"
#include "fusedbun/launcher/model/config_file.h"
#include "fusedbun/launcher/model/gpt2_file.h"
#include "fusedbun/launcher/model/model_shape.h"
#include "fusedbun/launcher/model/pretrained.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;
using model::config_beside;
using model::Gpt2Config;
using model::model_at;
using model::ModelConfig;

void require_same_model(const fs::path& path, const Gpt2Config& said, const Gpt2Config& found,
                        const fs::path& file) {
  const auto require = [&](const char* name, int64_t there, int64_t here) {
    FUSEDBUN_REQUIRE(there == here, DataError,
                     path.string() + " says " + name + " = " + std::to_string(there) + " and " +
                         file.string() + " has " + std::to_string(here) +
                         ": they are of different models");
  };
  require("n_layer", said.n_layer, found.n_layer);
  require("n_embd", said.n_embd, found.n_embd);
  require("n_positions", said.n_ctx, found.n_ctx);
  require("vocab_size", said.vocab, found.vocab);
}

std::optional<model::HeadsSaid> heads_said(const ModelChoice& asked, const Gpt2Config* beside,
                                           const fs::path& config_path) {
  std::optional<model::HeadsSaid> said;
  if (beside != nullptr) said = {beside->n_head, "n_head in " + config_path.string()};
  FUSEDBUN_REQUIRE(!said || asked.heads.value_or(said->heads) == said->heads, ConfigError,
                   "--heads = " + std::to_string(asked.heads.value_or(0)) + ": " + said->by +
                       " is " + std::to_string(said->heads));
  if (asked.heads) said = {*asked.heads, "--heads"};
  return said;
}

void require_fits(const ModelChoice& asked, const ModelConfig& config, const fs::path& source) {
  const model::ModelShape shape = model::shape_of(config);
  const auto require = [&](const char* flag, std::optional<int64_t> wish, int64_t has) {
    FUSEDBUN_REQUIRE(wish.value_or(has) == has, ConfigError,
                     std::string(flag) + " = " + std::to_string(wish.value_or(has)) + ": " +
                         source.string() + " has " + std::to_string(has));
  };
  require("--layers", asked.layers, shape.layers);
  require("--width", asked.width, shape.width);
  require("--heads", asked.heads, shape.heads);
  const int64_t context = model::context_of(config);
  FUSEDBUN_REQUIRE(asked.context.value_or(1) <= context, ConfigError,
                   "--context = " + std::to_string(asked.context.value_or(1)) + ": " +
                       source.string() + " knows " + std::to_string(context) + " positions");
}

fs::path folder_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : ".";
}

InitialModel of_sizes(const ModelChoice& asked) {
  const Gpt2Config base;
  return {.file = {},
          .config = Gpt2Config{.n_layer = asked.layers.value_or(base.n_layer),
                               .n_head = asked.heads.value_or(base.n_head),
                               .n_embd = asked.width.value_or(base.n_embd),
                               .n_ctx = asked.context.value_or(base.n_ctx),
                               .vocab = base.vocab},
          .assumption = {}};
}

InitialModel of_config(const TrainOptions& options) {
  model::ConfigFile file = model::read_config_file(options.model_config);
  require_fits(options.model, file.config, options.model_config);
  return {.file = {},
          .config_text = std::move(file.text),
          .folder = folder_of(file.path),
          .config = std::move(file.config),
          .assumption = {}};
}

InitialModel of_weights(const TrainOptions& options) {
  const ModelChoice& asked = options.model;
  InitialModel initial{.file = model_at(options.init), .config = {}, .assumption = {}};
  initial.folder = folder_of(initial.file);
  const std::optional<fs::path> config_path = config_beside(initial.file);
  if (config_path) {
    initial.config_text = run_folder::read_text_file(*config_path);
    initial.config = model::parse_hf_config(initial.config_text, config_path->string());
  }
  const auto* const said = std::get_if<Gpt2Config>(&initial.config);
  const model::WeightFiles files(initial.file);
  if (said != nullptr) {
    const model::FoundSizes found = model::sizes_of(
        files, heads_said(asked, config_path ? said : nullptr, config_path.value_or(fs::path())));
    if (config_path) require_same_model(*config_path, *said, found.config, initial.file);
    if (!config_path) initial.config = found.config;
    if (found.heads_are_assumed) {
      initial.assumption = "heads: " + std::to_string(found.config.n_head) +
                           " assumed, 64 wide as in OpenAI's models: neither " +
                           initial.file.string() +
                           " nor a config.json beside it says; --heads does";
    }
  }
  require_fits(asked, initial.config, options.init);
  return initial;
}

}  // namespace

InitialModel choose_initial_model(const TrainOptions& options) {
  InitialModel initial = !options.init.empty()           ? of_weights(options)
                         : !options.model_config.empty() ? of_config(options)
                                                         : of_sizes(options.model);
  if (options.model.dropout) model::set_dropout(initial.config, *options.model.dropout);
  return initial;
}

std::string config_json(const InitialModel& initial, std::string_view dtype) {
  if (initial.config_text.empty()) return model::hf_config_text(initial.config, dtype);
  return model::with_dtype(model::with_dropout(initial.config_text, initial.config), dtype);
}

std::shared_ptr<model::CausalLm> make_model(const InitialModel& initial,
                                            const TrainOptions& options) {
  std::shared_ptr<model::CausalLm> model = model::make_causal_lm(initial.config, options.seed);
  if (!initial.file.empty()) model::load_weights(model::WeightFiles(initial.file), *model);
  return model;
}

}  // namespace fusedbun::train

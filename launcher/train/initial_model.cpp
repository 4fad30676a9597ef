#include "fusedbun/launcher/train/initial_model.h"

#include <optional>

#include "fusedbun/core/error.h"
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

void require_fits(const TrainOptions& options, const ModelConfig& config) {
  const ModelChoice& asked = options.model;
  const model::ModelShape shape = model::shape_of(config);
  const auto require = [&](const char* flag, std::optional<int64_t> wish, int64_t has) {
    FUSEDBUN_REQUIRE(wish.value_or(has) == has, ConfigError,
                     std::string(flag) + " = " + std::to_string(wish.value_or(has)) + ": " +
                         options.init.string() + " has " + std::to_string(has));
  };
  require("--layers", asked.layers, shape.layers);
  require("--width", asked.width, shape.width);
  require("--heads", asked.heads, shape.heads);
  const int64_t context = model::context_of(config);
  FUSEDBUN_REQUIRE(asked.context.value_or(1) <= context, ConfigError,
                   "--context = " + std::to_string(asked.context.value_or(1)) + ": " +
                       options.init.string() + " knows " + std::to_string(context) + " positions");
}

}  // namespace

InitialModel choose_initial_model(const TrainOptions& options) {
  const ModelChoice& asked = options.model;
  if (options.init.empty()) {
    const Gpt2Config base;
    InitialModel own{.file = {},
                     .config_file = {},
                     .config = Gpt2Config{.n_layer = asked.layers.value_or(base.n_layer),
                                          .n_head = asked.heads.value_or(base.n_head),
                                          .n_embd = asked.width.value_or(base.n_embd),
                                          .n_ctx = asked.context.value_or(base.n_ctx),
                                          .vocab = base.vocab},
                     .assumption = {}};
    if (asked.dropout) model::set_dropout(own.config, *asked.dropout);
    return own;
  }
  InitialModel initial{
      .file = model_at(options.init), .config_file = {}, .config = {}, .assumption = {}};
  const std::optional<fs::path> config_path = config_beside(initial.file);
  if (config_path) {
    initial.config_file = *config_path;
    initial.config = model::read_hf_config(*config_path);
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
  require_fits(options, initial.config);
  if (asked.dropout) model::set_dropout(initial.config, *asked.dropout);
  return initial;
}

std::shared_ptr<model::CausalLm> make_model(const InitialModel& initial,
                                            const TrainOptions& options) {
  std::shared_ptr<model::CausalLm> model = model::make_causal_lm(initial.config, options.seed);
  if (!initial.file.empty()) model::load_weights(model::WeightFiles(initial.file), *model);
  return model;
}

}  // namespace fusedbun::train

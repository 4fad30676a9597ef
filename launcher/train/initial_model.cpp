#include "fusedbun/launcher/train/initial_model.h"

#include <ATen/ATen.h>

#include <optional>
#include <system_error>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/launcher/train/hf_config.h"
#include "fusedbun/launcher/train/hf_gpt2.h"

namespace fusedbun::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShardIndexName = "model.safetensors.index.json";

// The file that `given` names: itself, or a folder's.
fs::path model_at(const fs::path& given) {
  std::error_code error;
  if (!fs::is_directory(given, error)) return given;
  const fs::path file = given / run_folder::kModelName;
  if (fs::exists(file, error)) return file;
  // Reading it says what it is.
  if (const fs::path index = given / kShardIndexName; fs::exists(index, error)) return index;
  throw DataError("--init " + given.string() + " is a folder without a " +
                  std::string(run_folder::kModelName));
}

// A path that a person gave may be a link, as in Hugging Face's cache.
fs::path without_links(const fs::path& path) {
  std::error_code error;
  const fs::path file = fs::canonical(path, error);
  FUSEDBUN_REQUIRE(!error, DataError,
                   "cannot read --init " + path.string() + ": " + error.message());
  return file;
}

// Beside the link, where Hugging Face's cache has it, or beside the file.
std::optional<HfConfig> config_beside(const fs::path& link, const fs::path& file) {
  constexpr const char* kName = "config.json";
  std::optional<HfConfig> found = read_hf_config(link.parent_path() / kName);
  return found ? found : read_hf_config(file.parent_path() / kName);
}

void require_same_model(const HfConfig& beside, const Gpt2Config& config, const fs::path& file) {
  const auto require = [&](const char* name, std::optional<int64_t> said, int64_t found) {
    FUSEDBUN_REQUIRE(said.value_or(found) == found, DataError,
                     beside.path.string() + " says " + name + " = " +
                         std::to_string(said.value_or(found)) + " and " + file.string() + " has " +
                         std::to_string(found) + ": they are of different models");
  };
  require("n_layer", beside.n_layer, config.n_layer);
  require("n_embd", beside.n_embd, config.n_embd);
}

std::optional<HeadsSaid> heads_said(const ModelChoice& asked,
                                    const std::optional<HfConfig>& beside) {
  std::optional<HeadsSaid> said;
  if (beside && beside->n_head) said = {*beside->n_head, "n_head in " + beside->path.string()};
  FUSEDBUN_REQUIRE(!said || asked.heads.value_or(said->heads) == said->heads, ConfigError,
                   "--heads = " + std::to_string(asked.heads.value_or(0)) + ": " + said->by +
                       " is " + std::to_string(said->heads));
  if (asked.heads) said = {*asked.heads, "--heads"};
  return said;
}

void require_finite(const Gpt2& model, const fs::path& file) {
  for (const auto& parameter : model->named_parameters()) {
    FUSEDBUN_REQUIRE(at::isfinite(parameter.value()).all().item<bool>(), ConfigError,
                     "--init " + file.string() + ": '" + parameter.key() +
                         "' holds NaN or inf, from which nothing can be learned: take a checkpoint "
                         "from before that");
  }
}

}  // namespace

InitialModel choose_initial_model(const TrainOptions& options) {
  const ModelChoice& asked = options.model;
  if (options.init.empty()) {
    const Gpt2Config base;
    return {.file = {},
            .config = {.n_layer = asked.layers.value_or(base.n_layer),
                       .n_head = asked.heads.value_or(base.n_head),
                       .n_embd = asked.width.value_or(base.n_embd),
                       .n_ctx = asked.context.value_or(base.n_ctx),
                       .vocab = base.vocab},
            .assumption = {}};
  }
  const fs::path link = model_at(options.init);
  const fs::path path = without_links(link);
  const std::optional<HfConfig> beside = config_beside(link, path);
  const checkpoint::SafetensorsFile file(path);
  const FoundSizes found = sizes_of(file, heads_said(asked, beside));
  const Gpt2Config& config = found.config;
  if (beside) require_same_model(*beside, config, path);
  const auto require_fits = [&](const char* flag, std::optional<int64_t> wish, int64_t has) {
    FUSEDBUN_REQUIRE(wish.value_or(has) == has, ConfigError,
                     std::string(flag) + " = " + std::to_string(wish.value_or(has)) + ": " +
                         options.init.string() + " has " + std::to_string(has));
  };
  require_fits("--layers", asked.layers, config.n_layer);
  require_fits("--width", asked.width, config.n_embd);
  FUSEDBUN_REQUIRE(asked.context.value_or(1) <= config.n_ctx, ConfigError,
                   "--context = " + std::to_string(asked.context.value_or(1)) + ": " +
                       options.init.string() + " knows " + std::to_string(config.n_ctx) +
                       " positions");
  FUSEDBUN_REQUIRE(config.vocab == Gpt2Config{}.vocab, DataError,
                   options.init.string() + " has " + std::to_string(config.vocab) +
                       " token ids; text is read as bytes here, which needs 256");
  InitialModel initial{.file = path, .config = config, .assumption = {}};
  if (found.heads_are_assumed) {
    initial.assumption = "heads: " + std::to_string(config.n_head) +
                         " assumed, 64 wide as in OpenAI's models: neither " + link.string() +
                         " nor a config.json beside it says; --heads does";
  }
  return initial;
}

Gpt2 make_model(const InitialModel& initial, const TrainOptions& options) {
  Gpt2 model(initial.config, options.seed);
  if (!initial.file.empty()) {
    load_hf(checkpoint::SafetensorsFile(initial.file), model);
    require_finite(model, options.init);
  }
  return model;
}

}  // namespace fusedbun::train

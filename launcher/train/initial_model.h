#pragma once
// The model that a run starts from: of --init, or random as --model-config or sizes say.
//
// Thread safety: functions without state.
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/hf_config.h"
#include "fusedbun/launcher/train/train_options.h"

namespace fusedbun::train {

struct InitialModel {
  std::filesystem::path file;  ///< of weights, or the index of several; empty: random from the seed
  std::string config_text = {};  ///< of the config.json that the model has; empty: there is none
  std::filesystem::path folder = {};  ///< whose tokenizer is the model's; empty: none
  model::ModelConfig config;          ///< with the dropout that was asked for
  std::string
      assumption;  ///< a sentence for the user about what the file does not say; mostly empty
};

/// Reads the headers of --init and the config.json beside it, but no weight; or --model-config (launcher/model/config_file.h); or takes sizes alone.
/// --init names a safetensors file, the index of several, or a folder with one of them (a run folder, a checkout from Hugging Face); without
/// a config.json it must be a GPT-2. Throws ConfigError if the flags ask for other sizes than the model has; DataError if it cannot be read,
/// or config.json is of another model; for --model-config also as model::read_config_file does.
InitialModel choose_initial_model(const TrainOptions& options);

/// The config.json of what is trained, whose weights are stored in `dtype` ("float32").
std::string config_json(const InitialModel& initial, std::string_view dtype);

/// Throws DataError as model::load_weights does.
std::shared_ptr<model::CausalLm> make_model(const InitialModel& initial,
                                            const TrainOptions& options);

}  // namespace fusedbun::train

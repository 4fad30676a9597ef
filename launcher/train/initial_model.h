#pragma once
// The model that a run starts from: of --init, or of the sizes that were asked for and random.
//
// Thread safety: functions without state.
#include <filesystem>
#include <memory>
#include <string>

#include "fusedbun/launcher/model/causal_lm.h"
#include "fusedbun/launcher/model/hf_config.h"
#include "fusedbun/launcher/train/train_options.h"

namespace fusedbun::train {

struct InitialModel {
  std::filesystem::path file;  ///< of weights, or the index of several; empty: random from the seed
  std::filesystem::path config_file;  ///< beside it; empty: there is none
  model::ModelConfig config;          ///< with the dropout that was asked for
  std::string
      assumption;  ///< a sentence for the user about what the file does not say; mostly empty
};

/// Reads the headers of --init and the config.json beside it, but no weight. --init names a safetensors file, the index of several, or a
/// folder with one of them (a run folder, a checkout from Hugging Face); without a config.json it must be a GPT-2. Throws ConfigError if the
/// flags ask for other sizes than the model has; DataError if it cannot be read, or config.json is of another model.
InitialModel choose_initial_model(const TrainOptions& options);

/// Throws DataError as model::load_weights does.
std::shared_ptr<model::CausalLm> make_model(const InitialModel& initial,
                                            const TrainOptions& options);

}  // namespace fusedbun::train

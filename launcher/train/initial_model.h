#pragma once
// The model that a run starts from: of --init, or of the sizes that were asked for and random.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string>

#include "fusedbun/launcher/train/gpt2.h"
#include "fusedbun/launcher/train/train_options.h"

namespace fusedbun::train {

struct InitialModel {
  std::filesystem::path file;  ///< empty: random from the seed
  Gpt2Config config;
  std::string
      assumption;  ///< a sentence for the user about what the file does not say; mostly empty
};

/// Reads the header of --init and the config.json beside it, but no weight. --init names a safetensors file or a folder with
/// a model.safetensors in it (a run folder, a checkout from Hugging Face). Throws ConfigError if the flags ask for other
/// sizes than the file has; DataError if it cannot be read, is no GPT-2 of bytes, or config.json asks for another model.
InitialModel choose_initial_model(const TrainOptions& options);

/// Throws DataError as load_hf does; ConfigError naming the first parameter that holds NaN or inf.
Gpt2 make_model(const InitialModel& initial, const TrainOptions& options);

}  // namespace fusedbun::train

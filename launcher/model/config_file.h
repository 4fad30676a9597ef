#pragma once
// A file that says what a model is whose weights do not exist yet: a config.json, as transformers has it, or TOML in the same words:
//
//   model_type = "llama"
//   hidden_size = 512
//   ...
//   [rope_parameters]
//   rope_theta = 500000.0
//
// In TOML the whole may stand in a table [model], beside other keys, which belong to others (train/run_config.h).
// Of a config.json, which many programs write and read, what has no meaning here is ignored, and what is missing has transformers' default. In
// TOML, which people write, the sizes must be said, and a key that nothing here asks for is refused.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string>

#include "fusedbun/launcher/model/hf_config.h"

namespace fusedbun::model {

struct ConfigFile {
  std::filesystem::path path;
  ModelConfig config;  ///< validated
  std::string text;    ///< of a config.json that says the same
};

/// `given`: a file named *.toml, a config.json, or a folder with one. Throws DataError for a config.json as read_hf_config does; of TOML
/// UsageError for text that is none, with its line, and ConfigError naming the key that is missing, unknown or wrong; ConfigError for sizes
/// that cannot be together.
ConfigFile read_config_file(const std::filesystem::path& given);

}  // namespace fusedbun::model

#pragma once
// A file that says how a run is made, as flags of `train` do: TOML with a key per flag, in the flags' words,
//
//   lr = 1e-3
//   data = ["corpus/", "more.bin"]
//   centralize = true
//
//   [model]                  # from random weights, in config.json's words; or `init`, or layers, heads, width
//   model_type = "llama"
//   ...
//
// or the run.json of an earlier run, which is repeated. A model's own file (model/config_file.h) is taken for what it is: the flag
// model-config. Paths are those of the process, as in flags.
//
// Thread safety: functions without state.
#include <filesystem>
#include <string_view>
#include <vector>

#include "fusedbun/launcher/cli/settings.h"

namespace fusedbun::train {

/// Flags that say where one run, or one process of it, has its place: they come from no file, and a run.json gives none of them on.
bool is_typed_only(std::string_view flag);

/// What `path` says, with its lines as origins. Throws DataError (65) for a file that cannot be read, UsageError (64) for one that is no
/// TOML, with its line, ConfigError (78) for a value that no flag has.
std::vector<launcher::Setting> read_run_config(const std::filesystem::path& path);

}  // namespace fusedbun::train

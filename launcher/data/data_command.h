#pragma once
// `fusedbun data tokenize|show`: from text to files of tokens, and what is in them.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

/// Its callbacks throw Error for whatever goes wrong.
CLI::App* add_data_command(CLI::App& app);

}  // namespace fusedbun::launcher

#pragma once
// `fusedbun generate`: a model goes on with a text, or answers.
//
// Thread safety: none.
#include <CLI/App.hpp>

namespace fusedbun::launcher {

CLI::App* add_generate_command(CLI::App& app);

}  // namespace fusedbun::launcher

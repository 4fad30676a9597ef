#pragma once
// The flag --output text|json of commands that print data.
//
// Thread safety: none.
#include <CLI/App.hpp>
#include <memory>

namespace fusedbun::launcher {

enum class OutputFormat { text, json };

/// Adds --output; the value is there once the command line has been read.
std::shared_ptr<const OutputFormat> add_output_flag(CLI::App& command);

}  // namespace fusedbun::launcher
